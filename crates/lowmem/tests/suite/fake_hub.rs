//! An HTTP server on loopback that answers as the Hub does, and misbehaves when told to.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::Duration,
};

use sha2::{Digest, Sha256};

/// What every repository has, in addresses.
const REVISIONS: [&str; 4] = ["main", "v1", "refs%2Fpr%2F1", COMMIT];
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the next answers about paths that contain a text do instead.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Answers with this status.
    Status(u16),
    /// Sends this many bytes of the body and closes.
    Cut(usize),
    /// Sends this many bytes of the body and then nothing, for as long as the client waits.
    Stall(usize),
    /// Sends the whole file, whatever range was asked for.
    IgnoreRange,
    /// Sends the body with this byte of it changed.
    Damage(usize),
    /// Takes this long for every kilobyte.
    Slow(Duration),
}

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) token: Option<String>,
}

pub(crate) struct FakeHub {
    pub(crate) endpoint: String,
    state: Arc<State>,
}

struct State {
    files: Mutex<BTreeMap<String, Vec<u8>>>,
    faults: Mutex<Vec<(String, usize, Fault)>>,
    requests: Mutex<Vec<Request>>,
    token: Mutex<Option<String>>,
    /// Where large files are: another origin than the endpoint's.
    cdn: String,
}

impl FakeHub {
    /// Serves these files of the repositories `org/model` (and `model`, renamed to it), and of the data set `org/data`.
    pub(crate) fn start(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let (endpoint, cdn) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State {
            files: Mutex::new(files.into_iter().collect()),
            faults: Mutex::default(),
            requests: Mutex::default(),
            token: Mutex::default(),
            cdn: address(&cdn),
        });
        let hub = Self { endpoint: address(&endpoint), state: Arc::clone(&state) };
        for listener in [endpoint, cdn] {
            let state = Arc::clone(&state);
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    let state = Arc::clone(&state);
                    // A client that goes away is its own affair.
                    std::thread::spawn(move || drop(state.answer(stream)));
                }
            });
        }
        hub
    }

    pub(crate) fn fault(&self, path: &str, times: usize, fault: Fault) {
        self.state.faults.lock().unwrap().push((path.to_owned(), times, fault));
    }

    pub(crate) fn require_token(&self, token: &str) {
        *self.state.token.lock().unwrap() = Some(token.to_owned());
    }

    pub(crate) fn set_file(&self, name: &str, bytes: Vec<u8>) {
        self.state.files.lock().unwrap().insert(name.to_owned(), bytes);
    }

    /// How often a fault is still to happen: a test of faults that never did would show nothing.
    pub(crate) fn faults_left(&self) -> usize {
        self.state.faults.lock().unwrap().iter().map(|(_, times, _)| times).sum()
    }

    /// The requests since the last call.
    pub(crate) fn take_requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.requests.lock().unwrap())
    }
}

impl State {
    fn answer(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let (mut range, mut token) = (None, None);
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
                break;
            }
            let (name, value) = header.split_once(':').unwrap_or_default();
            match name.to_ascii_lowercase().as_str() {
                "range" => range = Some(value.trim().to_owned()),
                "authorization" => token = Some(value.trim().to_owned()),
                _ => {}
            }
        }
        let request = Request { path: path.clone(), range: range.clone(), token: token.clone() };
        self.requests.lock().unwrap().push(request);
        let fault = {
            let mut faults = self.faults.lock().unwrap();
            let found = faults.iter_mut().find(|(text, times, _)| *times > 0 && path.contains(text.as_str()));
            found.map(|fault| {
                fault.1 -= 1;
                fault.2.clone()
            })
        };
        if let Some(Fault::Status(status)) = fault {
            return respond(stream, status, &[], &[], None);
        }
        if let Some(name) = path.strip_prefix("/cdn/") {
            let file = self.files.lock().unwrap().get(name).cloned();
            return self.send(
                stream,
                file.unwrap_or_default(),
                range,
                &[("ETag", format!("\"{}\"", "c".repeat(64)))],
                fault,
            );
        }
        if let Some(rest) = path.strip_prefix("/model/") {
            // Renamed: the Hub redirects within itself.
            return respond(stream, 307, &[("Location", format!("/org/model/{rest}"))], &[], None);
        }
        let wanted = self.token.lock().unwrap().clone();
        if wanted.is_some_and(|wanted| token != Some(format!("Bearer {wanted}"))) {
            let headers = [("X-Error-Message", "Invalid credentials".to_owned())];
            return respond(stream, 401, &headers, &[], None);
        }
        if let Some(revision) = path.strip_prefix("/api/datasets/org/data/revision/") {
            if !REVISIONS.contains(&revision) {
                return respond(stream, 404, &[("X-Error-Code", "RevisionNotFound".into())], b"{}", None);
            }
            let files = self.files.lock().unwrap();
            let siblings: Vec<String> = files.keys().map(|name| format!("{{\"rfilename\":\"{name}\"}}")).collect();
            let body = format!("{{\"sha\":\"{COMMIT}\",\"siblings\":[{}]}}", siblings.join(","));
            return respond(stream, 200, &[], body.as_bytes(), fault);
        }
        let of_model = path.strip_prefix("/org/model/resolve/");
        let name =
            of_model.or_else(|| path.strip_prefix("/datasets/org/data/resolve/")).and_then(|rest| rest.split_once('/'));
        let Some((_, name)) = name.filter(|(revision, _)| REVISIONS.contains(revision)) else {
            return respond(stream, 404, &[], b"not found", None);
        };
        let Some(file) = self.files.lock().unwrap().get(name).cloned() else {
            return respond(stream, 404, &[("X-Error-Code", "EntryNotFound".into())], b"Entry not found", None);
        };
        let commit = ("X-Repo-Commit", COMMIT.to_owned());
        let large = name.ends_with(".safetensors");
        let etag = if large {
            format!("{:x}", Sha256::digest(&file))
        } else {
            format!("{:x}", file.iter().fold(7_u64, |hash, &byte| hash.wrapping_mul(31).wrapping_add(byte.into())))
        };
        // A `.bin` has the ETag of a mirror that knows no digests.
        if large || name.ends_with(".bin") {
            let headers = [
                commit,
                ("X-Linked-Etag", format!("\"{etag}\"")),
                ("X-Linked-Size", file.len().to_string()),
                ("Location", format!("{}/cdn/{name}", self.cdn)),
            ];
            return respond(stream, 302, &headers, b"Found. Redirecting", None);
        }
        self.send(stream, file, range, &[commit, ("ETag", format!("W/\"{etag}\""))], fault)
    }

    fn send(
        &self,
        stream: TcpStream,
        file: Vec<u8>,
        range: Option<String>,
        headers: &[(&str, String)],
        fault: Option<Fault>,
    ) -> std::io::Result<()> {
        let range = range.filter(|_| !matches!(fault, Some(Fault::IgnoreRange)));
        let bounds = range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let Some((first, last)) = bounds else {
            return respond(stream, 200, headers, &file, fault);
        };
        let first: usize = first.parse().unwrap();
        let last = last.parse().unwrap_or(usize::MAX).min(file.len().saturating_sub(1));
        let mut headers = headers.to_vec();
        if first >= file.len() {
            headers.push(("Content-Range", format!("bytes */{}", file.len())));
            return respond(stream, 416, &headers, &[], None);
        }
        headers.push(("Content-Range", format!("bytes {first}-{last}/{}", file.len())));
        respond(stream, 206, &headers, &file[first..=last], fault)
    }
}

fn respond(
    mut stream: TcpStream,
    status: u16,
    headers: &[(&str, String)],
    body: &[u8],
    fault: Option<Fault>,
) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n", body.len());
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    match fault {
        Some(Fault::Cut(bytes)) => stream.write_all(&body[..bytes.min(body.len())]),
        Some(Fault::Stall(bytes)) => {
            stream.write_all(&body[..bytes.min(body.len())])?;
            stream.flush()?;
            std::thread::sleep(Duration::from_secs(5));
            Ok(())
        }
        Some(Fault::Slow(pause)) => body.chunks(1024).try_for_each(|piece| {
            std::thread::sleep(pause);
            stream.write_all(piece)
        }),
        Some(Fault::Damage(at)) => {
            let mut body = body.to_vec();
            body[at] ^= 1;
            stream.write_all(&body)
        }
        _ => stream.write_all(body),
    }
}
