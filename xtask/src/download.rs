//! Bytes from a server into a file, going on after a cut.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Read, Seek, SeekFrom, Write},
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use indicatif::ProgressBar;
use ureq::{
    Agent, Body, Error,
    http::{Response, StatusCode},
    tls::{RootCerts, TlsConfig},
};

/// How patient a download is.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Tries in a row that bring nothing new before the download fails.
    pub tries: u32,
    /// Before the second of them; the pause doubles from there.
    pub pause: Duration,
    /// How long a silent server is waited for.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { tries: 4, pause: Duration::from_secs(1), silence: Duration::from_secs(60) }
    }
}

/// Why one try ended.
enum Ended {
    /// The next one may do better.
    Cut(anyhow::Error),
    /// It will not.
    Refused(anyhow::Error),
}

/// Fetches `url` into the new file `to`, which has all bytes when this returns `Ok`. `bar` counts them.
///
/// A cut connection is taken up where it ended, if the server can do that, and otherwise from the start.
///
/// # Errors
/// If the server cannot be reached or refuses, if it fails [`Patience::tries`] times in a row, or on a full disk.
pub fn download(url: &str, to: &Path, bar: &ProgressBar, patience: Patience) -> Result<()> {
    let agent = Agent::new_with_config(
        Agent::config_builder()
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(patience.silence))
            .timeout_per_read(Some(patience.silence))
            .http_status_as_error(false)
            .user_agent(concat!("transformer-utils-xtask/", env!("CARGO_PKG_VERSION")))
            .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
            .build(),
    );
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .open(to)
        .with_context(|| format!("writing {}", to.display()))?;
    let (mut best, mut failed, mut state) = (0, 0, State::default());
    loop {
        let error = match state.attempt(&agent, url, &mut file, bar) {
            Ok(()) => return Ok(()),
            Err(Ended::Refused(error)) => return Err(error),
            Err(Ended::Cut(error)) => error,
        };
        // A server that cuts every answer at the same byte brings nothing new, however much it sends.
        failed = if state.have > best { 1 } else { failed + 1 };
        best = best.max(state.have);
        if failed >= patience.tries {
            let got = indicatif::HumanBytes(best);
            return Err(error.context(format!("the connection failed {failed} times in a row, {got} had come")));
        }
        thread::sleep(patience.pause * 2u32.pow(failed - 1));
    }
}

/// What is known between the tries.
#[derive(Default)]
struct State {
    /// Bytes in the file.
    have: u64,
    /// What names these bytes, if the server said: another answer must not be appended to them.
    etag: Option<String>,
}

impl State {
    fn attempt(&mut self, agent: &Agent, url: &str, file: &mut File, bar: &ProgressBar) -> Result<(), Ended> {
        let mut request = agent.get(url);
        if let (1.., Some(etag)) = (self.have, &self.etag) {
            request = request.header("Range", format!("bytes={}-", self.have)).header("If-Range", etag);
        }
        let mut response = request.call().map_err(|error| self.transport(error))?;
        match response.status() {
            StatusCode::OK => self.have = 0,
            StatusCode::PARTIAL_CONTENT => {
                let starts = format!("bytes {}-", self.have);
                if !header(&response, "content-range").is_some_and(|range| range.starts_with(&starts)) {
                    self.etag = None;
                    return Err(Ended::Cut(anyhow!("the server sent another range than the one asked for")));
                }
            }
            status => {
                let error = anyhow!("the server answered {status}");
                let passing = status.is_server_error()
                    || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
                return Err(if passing { Ended::Cut(error) } else { Ended::Refused(error) });
            }
        }
        // If-Range takes strong tags only.
        self.etag = header(&response, "etag").filter(|tag| !tag.starts_with("W/")).map(str::to_owned);
        let length = header(&response, "content-length").and_then(|text| text.parse::<u64>().ok());
        let total = length.map(|length| length + self.have);
        if let Some(total) = total {
            bar.set_length(total);
        }
        bar.set_position(self.have);
        self.copy(&mut response, file, bar)?;
        match total {
            Some(total) if total != self.have => {
                Err(Ended::Cut(anyhow!("the connection ended after {} of {total} bytes", self.have)))
            }
            _ => Ok(()),
        }
    }

    fn copy(&mut self, response: &mut Response<Body>, file: &mut File, bar: &ProgressBar) -> Result<(), Ended> {
        let local = |result: std::io::Result<()>| result.context("writing the download").map_err(Ended::Refused);
        local(file.set_len(self.have))?;
        local(file.seek(SeekFrom::Start(self.have)).map(drop))?;
        let mut reader = response.body_mut().as_reader();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    local(file.write_all(&buffer[..n]))?;
                    self.have += n as u64;
                    bar.inc(n as u64);
                }
                Err(error) => {
                    let message = format!("the connection ended after {} bytes", self.have);
                    return Err(Ended::Cut(anyhow!(error).context(message)));
                }
            }
        }
    }

    /// Errors before an answer. With nothing received yet, a host that is unknown, refuses or cannot be reached will
    /// stay so: a closed network should not cost a minute.
    fn transport(&self, error: Error) -> Ended {
        let passing = match &error {
            Error::Timeout(_) | Error::Protocol(_) => true,
            // An unknown host has no kind of its own here.
            Error::Io(error) => matches!(
                error.kind(),
                ErrorKind::ConnectionReset
                    | ErrorKind::ConnectionAborted
                    | ErrorKind::BrokenPipe
                    | ErrorKind::UnexpectedEof
                    | ErrorKind::TimedOut
                    | ErrorKind::WouldBlock
                    | ErrorKind::Interrupted
            ),
            _ => false,
        };
        let error = anyhow!(error);
        if passing || self.have > 0 { Ended::Cut(error) } else { Ended::Refused(error) }
    }
}

fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// Refuses a URL that [`download`] could only fail on, so that a misspelt mirror is named as that.
///
/// # Errors
/// If it is neither `http://` nor `https://`.
pub fn check_url(url: &str) -> Result<()> {
    ensure!(!url.contains(char::is_whitespace), "{url:?} holds white space");
    if !(url.starts_with("https://") || url.starts_with("http://")) {
        bail!("{url:?} is no http address");
    }
    Ok(())
}
