//! Fetching files of the Hub into the shared cache.
//!
//! A file's address (`ENDPOINT/ID/resolve/COMMIT/FILE`) answers with its commit, its ETag and a redirect to where its
//! bytes are, which is also how files in Xet storage come to plain HTTP clients. Bytes are asked for by range from where
//! an earlier try ended, whoever made it and however it ended, and appended to `blobs/ETAG.incomplete`; only when their
//! number and their digest are right does the file get its name. The token is sent to the endpoint alone, never along a
//! redirect.
//!
//! The digest is known for large files (weights): their ETag is their SHA-256. That of a small one is said to be a hash that
//! Git makes, but an endpoint other than the Hub (`HF_ENDPOINT`) puts other 40 digits there, and a file that is good would be
//! refused. Small files come in one piece and are parsed at once.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Component, Path, PathBuf},
    thread,
    time::Duration,
};

use sha2::{Digest, Sha256};
use ureq::{Agent, Body, http::Response};

use crate::{
    Error, HubOptions, Progress, Result,
    cache::{CacheEntry, create_folder, is_name, link},
    safetensors_file,
};

/// Bytes of the first request for a safetensors header; most are smaller.
const HEADER_GUESS: u64 = 64 << 10;
/// Redirects followed before something is wrong.
const REDIRECT_LIMIT: usize = 8;
/// Bytes of one read.
const STEP: usize = 256 << 10;
/// The longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// The Hub, as one user sees it.
pub(crate) struct Hub {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    retries: u32,
    retry_wait: Duration,
    progress: std::sync::Arc<dyn Progress>,
}

/// An answer and the facts that only the endpoint itself gives.
struct Answer {
    response: Response<Body>,
    commit: Option<String>,
    etag: Option<String>,
    /// The SHA-256 of the file, 64 hexadecimal digits, where the endpoint gives it.
    sha256: Option<String>,
}

/// A download that may have been begun by somebody else.
struct Partial {
    path: PathBuf,
    output: File,
    /// Bytes that are there.
    have: u64,
    /// Of these bytes.
    hash: Sha256,
}

impl Partial {
    /// What is there of a file of `bytes`.
    fn open(path: &Path, bytes: u64) -> Result<Self> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let output = File::options().read(true).append(true).create(true).open(path).map_err(io)?;
        let have = output.metadata().map_err(io)?.len();
        let mut partial = Self { path: path.to_owned(), output, have, hash: Sha256::new() };
        if have > bytes {
            partial.restart()?;
        } else {
            // Whoever wrote these may have been cut off in the middle of a page.
            io::copy(&mut partial.output, &mut partial.hash).map_err(io)?;
        }
        Ok(partial)
    }

    fn error(&self) -> impl Fn(io::Error) -> Error {
        let path = &self.path;
        move |source| Error::Io { path: path.clone(), source }
    }

    fn restart(&mut self) -> Result<()> {
        self.output.set_len(0).map_err(self.error())?;
        (self.have, self.hash) = (0, Sha256::new());
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.output.write_all(bytes).map_err(self.error())?;
        self.hash.update(bytes);
        self.have += bytes.len() as u64;
        Ok(())
    }

    /// Checks the whole file and makes it safe; `expected` is its SHA-256, where that is known.
    fn finish(self, url: &str, expected: Option<&str>) -> Result<()> {
        // The name must not appear before the bytes are safe.
        self.output.sync_all().map_err(self.error())?;
        let found = format!("{:x}", self.hash.finalize());
        match expected.filter(|expected| !expected.eq_ignore_ascii_case(&found)) {
            None => Ok(()),
            Some(expected) => {
                // Best effort: where it stays it is refused again.
                let _ = fs::remove_file(&self.path);
                Err(Error::Digest { url: url.to_owned(), expected: expected.to_owned(), found })
            }
        }
    }
}

/// Why a try failed.
enum Failure {
    /// Trying again may help.
    Passing(String),
    /// It will not.
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

impl Hub {
    pub(crate) fn new(options: &HubOptions) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // Followed here, because the answers on the way say more than the last one, and for the token's sake.
            .max_redirects(0)
            .timeout_connect(Some(options.timeout))
            .timeout_recv_response(Some(options.timeout))
            .timeout_per_read(Some(options.timeout))
            .user_agent(concat!("transformer-utils/", env!("CARGO_PKG_VERSION"), "; rust"))
            .build()
            .new_agent();
        Self {
            agent,
            endpoint: options.address(),
            token: options.access_token(),
            retries: options.retries,
            retry_wait: options.retry_wait,
            progress: options.progress.clone(),
        }
    }

    /// The commit that the entry's revision means now, which is remembered in the cache. `file` must be in the repository.
    pub(crate) fn resolve(&self, entry: &CacheEntry, file: &str) -> Result<String> {
        let url = self.url(entry, &entry.revision, file);
        let answer = self.ask(&url, Some((0, 0)), |status| status == 404)?;
        if answer.response.status() == 404 {
            let (id, revision) = (entry.id.clone(), entry.revision.clone());
            return Err(Error::NotOnHub { id, revision, file: file.to_owned() });
        }
        let commit = answer.commit.filter(|commit| is_name(commit));
        let Some(commit) = commit else { return Err(bad_answer(&url, "the answer names no commit")) };
        entry.set_commit(&commit)?;
        Ok(commit)
    }

    /// Fetches a file; None if the repository has none of that name.
    pub(crate) fn fetch(&self, entry: &CacheEntry, commit: &str, file: &str) -> Result<Option<PathBuf>> {
        let url = self.url(entry, commit, file);
        let answer = self.ask(&url, Some((0, 0)), |status| status == 404 || status == 416)?;
        if answer.response.status() == 404 {
            entry.set_absent(commit, file)?;
            return Ok(None);
        }
        let Some(etag) = answer.etag.clone().filter(|etag| is_name(etag)) else {
            return Err(bad_answer(&url, "the answer has no ETag that can name a file"));
        };
        let Some(bytes) = total_bytes(&answer.response) else {
            return Err(bad_answer(&url, "the answer does not say how large the file is"));
        };
        let sha256 = answer.sha256.clone();
        drop(answer);
        let blobs = entry.root.join("blobs");
        let (blob, path) = (blobs.join(&etag), entry.snapshot(commit).join(file));
        create_folder(&blobs)?;
        create_folder(path.parent().unwrap_or(&blobs))?;
        // Two programs that want the same file take turns; the second finds it there.
        let _lock = lock(&entry.root, &etag)?;
        if fs::metadata(&blob).map_or(true, |found| found.len() != bytes) {
            let part = blobs.join(format!("{etag}.incomplete"));
            self.download(&url, file, bytes, &part, sha256.as_deref())?;
            fs::rename(&part, &blob).map_err(|source| Error::Io { path: blob.clone(), source })?;
        }
        link(&blob, &path)?;
        Ok(Some(path))
    }

    /// The header of a safetensors file, length field included, and the size of the file. Remembered in the cache.
    pub(crate) fn header(&self, entry: &CacheEntry, commit: &str, file: &str) -> Result<Option<(u64, Vec<u8>)>> {
        let url = self.url(entry, commit, file);
        let mut wanted = HEADER_GUESS;
        loop {
            let part = self.repeat(&url, || {
                let answer = self.follow(&url, Some((0, wanted - 1)))?;
                match check(&url, answer, |status| status == 404)? {
                    answer if answer.response.status() == 404 => Ok(None),
                    answer => read_range(&url, answer, wanted).map(Some),
                }
            })?;
            let Some((total, mut header)) = part else {
                entry.set_absent(commit, file)?;
                return Ok(None);
            };
            let path = entry.snapshot(commit).join(file);
            let needed = safetensors_file::header_end(&path, total, &header)?;
            if needed <= header.len() as u64 {
                header.truncate(needed as usize);
                entry.set_header(commit, file, total, &header)?;
                return Ok(Some((total, header)));
            }
            if wanted >= needed {
                return Err(bad_answer(&url, "the answer is shorter than the file's header"));
            }
            wanted = needed;
        }
    }

    fn url(&self, entry: &CacheEntry, revision: &str, file: &str) -> String {
        let file: Vec<String> = file.split('/').map(escape).collect();
        format!("{}/{}{}/resolve/{}/{}", self.endpoint, entry.prefix, entry.id, escape(revision), file.join("/"))
    }

    /// The commit that the entry's revision means now, and the names of all its files; both are remembered in the cache.
    pub(crate) fn list(&self, entry: &CacheEntry) -> Result<(String, Vec<String>)> {
        #[derive(serde::Deserialize)]
        struct Revision {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(serde::Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let kind = if entry.prefix.is_empty() { "models/" } else { entry.prefix };
        let url = format!("{}/api/{kind}{}/revision/{}", self.endpoint, entry.id, escape(&entry.revision));
        let bytes = self.repeat(&url, || {
            let mut answer = check(&url, self.follow(&url, None)?, |_| false)?.response;
            let mut bytes = Vec::new();
            let read = answer.body_mut().as_reader().read_to_end(&mut bytes);
            read.map_err(|error| Failure::Passing(error.to_string()))?;
            Ok(bytes)
        })?;
        let revision: Revision =
            serde_json::from_slice(&bytes).map_err(|_| bad_answer(&url, "the answer is no list of files"))?;
        let names: Vec<String> = revision.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        // They become paths on this machine.
        let plain = |name: &String| {
            !name.contains('\\') && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
        };
        if !is_name(&revision.sha) || !names.iter().all(plain) {
            return Err(bad_answer(&url, "the answer has names that no file can have"));
        }
        entry.set_commit(&revision.sha)?;
        entry.set_listing(&revision.sha, &names)?;
        Ok((revision.sha, names))
    }

    /// Appends what is missing of `bytes` to the file at `part`, and checks the whole.
    fn download(&self, url: &str, file: &str, bytes: u64, part: &Path, sha256: Option<&str>) -> Result<()> {
        let mut part = Partial::open(part, bytes)?;
        self.progress.download_begin(file, bytes, part.have);
        let mut failures = 0;
        while part.have < bytes {
            let before = part.have;
            match self.continue_download(url, file, bytes, &mut part) {
                Ok(()) => {}
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(problem)) => {
                    failures = if part.have > before { 0 } else { failures + 1 };
                    self.wait(url, failures, problem)?;
                }
            }
        }
        part.finish(url, sha256)?;
        self.progress.download_end(file);
        Ok(())
    }

    fn continue_download(&self, url: &str, file: &str, bytes: u64, part: &mut Partial) -> Result<(), Failure> {
        let mut answer = check(url, self.follow(url, Some((part.have, bytes - 1)))?, |_| false)?.response;
        if answer.status() != 206 || range_begin(&answer) != Some(part.have) {
            // A server that cannot continue sends everything.
            if answer.status() != 200 {
                return Err(bad_answer(url, "the answer is not the range that was asked for").into());
            }
            part.restart()?;
        }
        let mut body = answer.body_mut().as_reader();
        let mut buffer = vec![0; STEP];
        while part.have < bytes {
            let limit = (bytes - part.have).min(STEP as u64) as usize;
            let target = buffer.get_mut(..limit).unwrap_or_default();
            let have = part.have;
            let count = match body.read(target) {
                Ok(0) => return Err(Failure::Passing(format!("the connection ended after {have} of {bytes} bytes"))),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(Failure::Passing(format!(
                        "the connection broke after {have} of {bytes} bytes: {error}"
                    )));
                }
            };
            part.append(target.get(..count).unwrap_or_default())?;
            self.progress.downloaded(file, count as u64);
        }
        Ok(())
    }

    /// Asks for a range of a file and takes any answer of success, or one that `also` takes.
    fn ask(&self, url: &str, range: Option<(u64, u64)>, also: impl Fn(u16) -> bool) -> Result<Answer> {
        self.repeat(url, || check(url, self.follow(url, range)?, &also))
    }

    /// Tries until it works, will never work, or has been tried often enough.
    fn repeat<T>(&self, url: &str, mut attempt: impl FnMut() -> Result<T, Failure>) -> Result<T> {
        let mut failures = 0;
        loop {
            match attempt() {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(problem)) => {
                    failures += 1;
                    self.wait(url, failures, problem)?;
                }
            }
        }
    }

    fn wait(&self, url: &str, failures: u32, problem: String) -> Result<()> {
        if failures > self.retries {
            let problem = format!("{problem}; tried {failures} times. What has been fetched is kept; run it again");
            return Err(Error::Hub { url: url.to_owned(), status: None, problem });
        }
        let doubled = self.retry_wait.saturating_mul(1 << failures.saturating_sub(1).min(16));
        thread::sleep(doubled.min(LONGEST_WAIT));
        Ok(())
    }

    /// Sends one request along its redirects.
    fn follow(&self, url: &str, range: Option<(u64, u64)>) -> Result<Answer, Failure> {
        let (mut commit, mut etag) = (None, None);
        let mut at = url.to_owned();
        for _ in 0..REDIRECT_LIMIT {
            // Compressed, a range would not be one.
            let mut request = self.agent.get(&at).header("accept-encoding", "identity");
            if let Some((first, last)) = range {
                request = request.header("range", format!("bytes={first}-{last}"));
            }
            if let Some(token) = self.token.as_ref().filter(|_| origin(&at) == origin(&self.endpoint)) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|error| match error {
                ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
                    Failure::Final(bad_answer(&at, "this is not an address; is HF_ENDPOINT right?"))
                }
                error => Failure::Passing(error.to_string()),
            })?;
            let header = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
            commit = commit.or_else(|| header("x-repo-commit"));
            etag = etag.or_else(|| header("x-linked-etag")).or_else(|| header("etag").filter(|_| at == url));
            match (response.status().is_redirection(), header("location")) {
                (true, Some(location)) => at = join(&at, &location),
                _ => {
                    let plain = |etag: String| etag.trim_start_matches("W/").trim_matches('"').to_owned();
                    let promised = etag.map(plain);
                    let etag = promised.clone().or_else(|| header("etag").map(plain));
                    // What another host calls its bytes need not be their digest.
                    let sha256 = promised.filter(|etag| is_sha256(etag));
                    return Ok(Answer { response, commit, etag, sha256 });
                }
            }
        }
        Err(bad_answer(url, "it redirects without end").into())
    }
}

/// Sorts answers into good, passing and final ones.
fn check(url: &str, answer: Answer, also: impl Fn(u16) -> bool) -> Result<Answer, Failure> {
    let status = answer.response.status();
    if status.is_success() || also(status.as_u16()) {
        return Ok(answer);
    }
    let code = answer.response.headers().get("x-error-message").and_then(|text| text.to_str().ok());
    let said = code.map(|text| format!(" ({text})")).unwrap_or_default();
    let problem = match status.as_u16() {
        401 => "no such repository, or one that needs a token: set HF_TOKEN",
        403 => "access is refused; a gated repository must be asked for on its page, and HF_TOKEN be set",
        404 => "no such file, revision or repository",
        429 | 500..=599 => return Err(Failure::Passing(format!("the Hub answered {status}{said}"))),
        _ => "not an answer that is expected here",
    };
    let problem = format!("{problem}{said}");
    Err(Error::Hub { url: url.to_owned(), status: Some(status.as_u16()), problem }.into())
}

/// At most `wanted` bytes from the start of a file, and the size of the whole.
fn read_range(url: &str, mut answer: Answer, wanted: u64) -> Result<(u64, Vec<u8>), Failure> {
    let Some(total) = total_bytes(&answer.response) else {
        return Err(bad_answer(url, "the answer does not say how large the file is").into());
    };
    let mut bytes = Vec::new();
    let body = answer.response.body_mut().as_reader();
    body.take(wanted).read_to_end(&mut bytes).map_err(|error| Failure::Passing(error.to_string()))?;
    if (bytes.len() as u64) < wanted.min(total) {
        return Err(Failure::Passing(format!("the connection ended after {} bytes", bytes.len())));
    }
    Ok((total, bytes))
}

/// The size of the whole file, of which the answer may be a range.
fn total_bytes(response: &Response<Body>) -> Option<u64> {
    let header = |name: &str| response.headers().get(name)?.to_str().ok();
    match response.status().as_u16() {
        206 | 416 => header("content-range")?.rsplit('/').next()?.trim().parse().ok(),
        _ => header("content-length")?.trim().parse().ok(),
    }
}

/// The first byte of a range.
fn range_begin(response: &Response<Body>) -> Option<u64> {
    let range = response.headers().get("content-range")?.to_str().ok()?;
    range.trim().strip_prefix("bytes")?.trim().split('-').next()?.parse().ok()
}

fn is_sha256(etag: &str) -> bool {
    etag.len() == 64 && etag.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn bad_answer(url: &str, problem: &str) -> Error {
    Error::Hub { url: url.to_owned(), status: None, problem: problem.to_owned() }
}

/// Scheme, host and port.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    let end = url.get(host..).and_then(|rest| rest.find(['/', '?', '#'])).map_or(url.len(), |at| host + at);
    url.get(..end).unwrap_or(url)
}

/// Where a `Location` leads from `base`.
fn join(base: &str, location: &str) -> String {
    if location.contains("://") {
        location.to_owned()
    } else if let Some(host) = location.strip_prefix("//") {
        format!("{}://{host}", base.split("://").next().unwrap_or("https"))
    } else if location.starts_with('/') {
        format!("{}{location}", origin(base))
    } else {
        format!("{}/{location}", base.rsplit_once('/').map_or(base, |(folder, _)| folder))
    }
}

/// One segment of a path: a revision like `refs/pr/1` is one too.
fn escape(segment: &str) -> String {
    let mut escaped = String::new();
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

fn lock(root: &Path, etag: &str) -> Result<File> {
    let path = root.parent().unwrap_or(root).join(".locks").join(root.file_name().unwrap_or_default());
    create_folder(&path)?;
    let path = path.join(format!("{etag}.lock"));
    let io = |source| Error::Io { path: path.clone(), source };
    let file = File::options().create(true).append(true).open(&path).map_err(io)?;
    match file.lock() {
        // A file system without locks: two programs at once are then the user's care.
        Err(error) if error.kind() != io::ErrorKind::Unsupported => Err(io(error)),
        _ => Ok(file),
    }
}

#[cfg(test)]
mod tests {
    use super::{escape, join, origin};

    #[test]
    fn addresses() {
        assert_eq!(origin("https://hub.co/a/b?c"), "https://hub.co");
        assert_eq!(origin("http://127.0.0.1:80"), "http://127.0.0.1:80");
        assert_eq!(join("https://a.co/x/y", "https://b.co/z"), "https://b.co/z");
        assert_eq!(join("https://a.co/x/y", "/z?q=1"), "https://a.co/z?q=1");
        assert_eq!(join("https://a.co/x/y", "//b.co/z"), "https://b.co/z");
        assert_eq!(join("https://a.co/x/y", "z"), "https://a.co/x/z");
        assert_eq!(escape("refs/pr/1"), "refs%2Fpr%2F1");
    }
}
