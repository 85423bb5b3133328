//! Facade; see ARCHITECTURE.md.
