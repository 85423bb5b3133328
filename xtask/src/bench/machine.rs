//! What the figures were measured on.

use std::fs;

use crate::libtorch::Provided;

use super::child::status_mib;

/// One line: date, processor, memory, libtorch.
pub fn describe(provided: &Provided) -> String {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let processor = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| processor(&text));
    let processor = processor.unwrap_or_else(|| format!("{} processor", std::env::consts::ARCH));
    let memory = fs::read_to_string("/proc/meminfo").ok().and_then(|text| status_mib(&text, "MemTotal"));
    let memory = memory.map_or_else(String::new, |mib| format!(", {:.0} GiB of memory", mib / 1024.0));
    let date = time::OffsetDateTime::now_utc().date();
    format!("{date}: {processor}, {cores} cores{memory}, {}", provided.folder)
}

/// The model in the text of `/proc/cpuinfo`.
fn processor(text: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix("model name"))?;
    Some(line.trim_start().strip_prefix(':')?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_processor_is_found_by_name() {
        let text = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) @ 2.60GHz\nmodel name\t: another\n";
        assert_eq!(super::processor(text).as_deref(), Some("Intel(R) Xeon(R) @ 2.60GHz"));
        assert_eq!(super::processor("Hardware: board\n"), None);
    }
}
