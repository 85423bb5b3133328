//! What people mean by `--model`, and where to look for it.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crate::{Error, NoProgress, Progress, Result};

/// Where a checkpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file or folder on this machine.
    Local(PathBuf),
    /// A repository of the Hugging Face Hub: `name` or `organisation/name`.
    Hub(String),
    /// One model in a repository of many, such as the GGUF files of one model: `organisation/name:file`.
    HubFile {
        /// The repository.
        id: String,
        /// The file; of a model in several files, any of them.
        file: String,
    },
}

impl Source {
    /// Reads what somebody typed: a path that exists is that path; otherwise `name` and `organisation/name` are
    /// repositories of the Hub, and `organisation/name:file.gguf` is a file of one.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] for what does not exist and looks like a path, or is no repository's name.
    ///
    /// ```
    /// use lowmem::{Error, Source};
    /// # fn main() -> lowmem::Result<()> {
    /// assert_eq!(Source::parse("EleutherAI/gpt-neo-2.7B")?, Source::Hub("EleutherAI/gpt-neo-2.7B".into()));
    /// let file = Source::parse("bartowski/SmolLM2-135M-Instruct-GGUF:SmolLM2-135M-Instruct-Q4_0.gguf")?;
    /// assert!(matches!(file, Source::HubFile { .. }));
    /// assert!(matches!(Source::parse("./gpt2"), Err(Error::NotFound { .. })));
    /// # Ok(())
    /// # }
    /// ```
    pub fn parse(text: &str) -> Result<Self> {
        let path = Path::new(text);
        if path.exists() {
            Ok(Self::Local(path.to_owned()))
        } else if is_repository(text) {
            Ok(Self::Hub(text.to_owned()))
        } else if let Some((id, file)) = text.split_once(':').filter(|(id, file)| is_repository(id) && is_gguf(file)) {
            Ok(Self::HubFile { id: id.to_owned(), file: file.to_owned() })
        } else {
            Err(Error::NotFound { path: path.to_owned() })
        }
    }
}

/// As [`Source::parse`] reads it.
impl TryFrom<&str> for Source {
    type Error = Error;

    fn try_from(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

/// As [`Source::parse`] reads it.
impl TryFrom<&String> for Source {
    type Error = Error;

    fn try_from(text: &String) -> Result<Self> {
        Self::parse(text)
    }
}

/// As [`Source::parse`] reads it.
impl TryFrom<String> for Source {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        Self::parse(&text)
    }
}

/// A path is on this machine, whether it exists or not.
impl From<&Path> for Source {
    fn from(path: &Path) -> Self {
        Self::Local(path.to_owned())
    }
}

/// A path is on this machine, whether it exists or not.
impl From<&PathBuf> for Source {
    fn from(path: &PathBuf) -> Self {
        Self::Local(path.clone())
    }
}

/// A path is on this machine, whether it exists or not.
impl From<PathBuf> for Source {
    fn from(path: PathBuf) -> Self {
        Self::Local(path)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => write!(formatter, "{}", path.display()),
            Self::Hub(id) => formatter.write_str(id),
            Self::HubFile { id, file } => write!(formatter, "{id}:{file}"),
        }
    }
}

/// Whether a name is that of a GGUF file, in no folder.
fn is_gguf(name: &str) -> bool {
    let plain = !name.contains(['/', '\\']) && !name.starts_with('.');
    plain && Path::new(name).extension().is_some_and(|extension| extension == "gguf")
}

/// The Hub's own rule for names, less what ends like a file of weights.
fn is_repository(text: &str) -> bool {
    let file = Path::new(text).extension().and_then(|extension| extension.to_str());
    let segments: Vec<&str> = text.split('/').collect();
    let fine = |segment: &&str| {
        let edge = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
        segment.len() <= 96
            && segment.starts_with(edge)
            && segment.ends_with(edge)
            && segment.chars().all(|letter| edge(letter) || matches!(letter, '-' | '.'))
            && !segment.contains("..")
            && !segment.contains("--")
    };
    segments.len() <= 2
        && segments.iter().all(fine)
        && !file.is_some_and(|file| matches!(file, "safetensors" | "bin" | "json" | "pt" | "pth" | "ckpt" | "gguf"))
}

/// How to find and fetch checkpoints of the Hub. What is `None` is taken from the environment.
#[derive(Clone)]
#[non_exhaustive]
pub struct HubOptions {
    /// A branch, tag or commit. `None`: `main`.
    pub revision: Option<String>,
    /// Use the cache alone. Also so when `HF_HUB_OFFLINE` is set to 1, true, yes or on.
    pub offline: bool,
    /// An access token. `None`: `HF_TOKEN`, or the file that `HF_TOKEN_PATH` names, or `token` in `HF_HOME`.
    pub token: Option<String>,
    /// The Hub's address. `None`: `HF_ENDPOINT`, or <https://huggingface.co>.
    pub endpoint: Option<String>,
    /// The cache, laid out as `huggingface_hub` does. `None`: `HF_HUB_CACHE`, or `hub` in `HF_HOME`, or
    /// `~/.cache/huggingface/hub`.
    pub cache: Option<PathBuf>,
    /// How long the Hub may stay silent before a connection is given up.
    pub timeout: Duration,
    /// How often in a row a request may fail without bringing a byte before it is given up, besides the first time.
    pub retries: u32,
    /// How long to wait before the first repetition; each further wait is twice as long.
    pub retry_wait: Duration,
    /// Told of downloads.
    pub progress: Arc<dyn Progress>,
}

impl Default for HubOptions {
    fn default() -> Self {
        Self {
            revision: None,
            offline: false,
            token: None,
            endpoint: None,
            cache: None,
            timeout: Duration::from_secs(30),
            retries: 5,
            retry_wait: Duration::from_millis(500),
            progress: Arc::new(NoProgress),
        }
    }
}

impl HubOptions {
    /// With another choice of [`HubOptions::revision`].
    pub fn revision(mut self, revision: impl Into<Option<String>>) -> Self {
        self.revision = revision.into();
        self
    }

    /// With another choice of [`HubOptions::offline`].
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// With another choice of [`HubOptions::token`].
    pub fn token(mut self, token: impl Into<Option<String>>) -> Self {
        self.token = token.into();
        self
    }

    /// With another choice of [`HubOptions::endpoint`].
    pub fn endpoint(mut self, endpoint: impl Into<Option<String>>) -> Self {
        self.endpoint = endpoint.into();
        self
    }

    /// With another choice of [`HubOptions::cache`].
    pub fn cache(mut self, cache: impl Into<Option<PathBuf>>) -> Self {
        self.cache = cache.into();
        self
    }

    /// With another choice of [`HubOptions::timeout`].
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// With another choice of [`HubOptions::retries`].
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// With another choice of [`HubOptions::retry_wait`].
    pub fn retry_wait(mut self, retry_wait: Duration) -> Self {
        self.retry_wait = retry_wait;
        self
    }

    /// With another choice of [`HubOptions::progress`].
    pub fn progress(mut self, progress: Arc<dyn Progress>) -> Self {
        self.progress = progress;
        self
    }
}

impl fmt::Debug for HubOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("HubOptions")
            .field("revision", &self.revision)
            .field("offline", &self.offline)
            // Never printed: logs are shared.
            .field("token", &self.token.as_ref().map(|_| "(set)"))
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("timeout", &self.timeout)
            .field("retries", &self.retries)
            .field("retry_wait", &self.retry_wait)
            .finish_non_exhaustive()
    }
}

impl HubOptions {
    pub(crate) fn revision_or_main(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    pub(crate) fn is_offline(&self) -> bool {
        let yes = |value: &str| matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on");
        self.offline || variable("HF_HUB_OFFLINE").is_some_and(|value| yes(&value))
    }

    /// The folder of the cache that repositories lie in.
    pub(crate) fn cache_folder(&self) -> Option<PathBuf> {
        let named = || variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE")).map(PathBuf::from);
        self.cache.clone().or_else(named).or_else(|| Some(home()?.join("hub")))
    }
}

#[cfg(feature = "hub")]
impl HubOptions {
    pub(crate) fn address(&self) -> String {
        let endpoint = self.endpoint.clone().or_else(|| variable("HF_ENDPOINT"));
        let endpoint = endpoint.unwrap_or_else(|| "https://huggingface.co".into());
        endpoint.trim_end_matches('/').to_owned()
    }

    pub(crate) fn access_token(&self) -> Option<String> {
        let named = || variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN"));
        let stored = || {
            let path = variable("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(home()?.join("token")))?;
            std::fs::read_to_string(path).ok()
        };
        let token = self.token.clone().or_else(named).or_else(stored)?;
        Some(token.trim().to_owned()).filter(|token| !token.is_empty())
    }
}

/// `HF_HOME`, or the place that `huggingface_hub` would take.
fn home() -> Option<PathBuf> {
    let cache = || {
        let base = variable("XDG_CACHE_HOME").map(PathBuf::from);
        Some(base.or_else(|| Some(env::home_dir()?.join(".cache")))?.join("huggingface"))
    };
    variable("HF_HOME").map(PathBuf::from).or_else(cache)
}

/// A variable of the environment that is set to something.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}
