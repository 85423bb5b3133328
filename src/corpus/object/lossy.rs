//! A store on the loopback that loses connections in the middle of objects, and what becomes of a job that writes to it.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use models::{Config, Model};
use object_store::{BackoffConfig, ObjectStore, RetryConfig, aws::AmazonS3Builder, path::Path};

use super::store::Object;
use crate::corpus::{Corpus, Error, Job, Safetensors, merge::merge_place, place::Place};

/// What speaks enough of S3 for a job.
struct LossyStore {
    address: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Vec<u8>>,
    /// Names of objects that somebody began to write.
    begun: Vec<String>,
    /// Objects whose names contain this lose their connection so many times.
    loses: (&'static str, usize),
}

impl LossyStore {
    fn start(loses: (&'static str, usize)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State { loses, ..State::default() }));
        let served = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&served);
                // A connection that ends early is the client's business.
                thread::spawn(move || serve(&stream, &state).ok());
            }
        });
        Self { address, state }
    }

    /// `s3://bucket/acts` in it, by a client that tries three times, without waiting.
    fn folder(&self) -> Object {
        let (init_backoff, max_backoff) = (Duration::from_millis(1), Duration::from_millis(2));
        let retry = RetryConfig {
            backoff: BackoffConfig { init_backoff, max_backoff, base: 2.0 },
            max_retries: 2,
            // Of no account: machines may stop for long.
            retry_timeout: Duration::from_secs(3600),
        };
        // As every address does it, for the choice of a TLS library.
        Object::parse("s3://bucket/acts").unwrap();
        let store = AmazonS3Builder::new()
            .with_endpoint(&self.address)
            .with_allow_http(true)
            .with_bucket_name("bucket")
            .with_region("nowhere")
            .with_access_key_id("key")
            .with_secret_access_key("secret")
            .with_retry(retry)
            .build()
            .unwrap();
        Object::new(Arc::new(store) as Arc<dyn ObjectStore>, "s3://bucket", Path::from("acts"))
    }

    fn names(&self) -> Vec<String> {
        self.state.lock().unwrap().objects.keys().cloned().collect()
    }

    fn begun(&self, name: &str) -> usize {
        self.state.lock().unwrap().begun.iter().filter(|begun| begun.ends_with(name)).count()
    }
}

fn serve(stream: &TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? <= 2 {
            break;
        }
        lines.push(line.trim_end().to_ascii_lowercase());
    }
    let header = |name: &str| lines.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let mut words = lines.first().map_or("", String::as_str).split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let name = path.trim_start_matches("/bucket").trim_start_matches('/').to_owned();
    let reply = |status: &str, more: &str, body: &[u8], length: usize| {
        let common = "etag: \"1\"\r\nlast-modified: Wed, 21 Oct 2015 07:28:00 GMT\r\nconnection: close\r\n";
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{common}{more}\r\n");
        let mut stream = stream;
        stream.write_all(&[head.as_bytes(), body].concat())
    };
    match method {
        "put" => {
            let length: usize = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
            let is_lost = {
                let mut state = state.lock().unwrap();
                state.begun.push(name.clone());
                let is_lost = name.contains(state.loses.0) && state.loses.1 > 0;
                state.loses.1 -= usize::from(is_lost);
                is_lost
            };
            let mut body = vec![0; if is_lost { length / 2 } else { length }];
            reader.read_exact(&mut body)?;
            if is_lost {
                return Ok(());
            }
            let mut state = state.lock().unwrap();
            if header("if-none-match").is_some() && state.objects.contains_key(&name) {
                return reply("412 Precondition Failed", "", b"", 0);
            }
            state.objects.insert(name, body);
            reply("200 OK", "", b"", 0)
        }
        "get" if query.contains("list-type") => {
            let object = |(name, bytes): (&String, &Vec<u8>)| {
                let size = bytes.len();
                let date = "<LastModified>2015-10-21T07:28:00.000Z</LastModified>";
                format!("<Contents><Key>{name}</Key>{date}<ETag>1</ETag><Size>{size}</Size></Contents>")
            };
            let objects: String = state.lock().unwrap().objects.iter().map(object).collect();
            let xml =
                format!("<ListBucketResult><IsTruncated>false</IsTruncated>{objects}</ListBucketResult>").into_bytes();
            reply("200 OK", "", &xml, xml.len())
        }
        _ => {
            let state = state.lock().unwrap();
            let Some(bytes) = state.objects.get(&name) else { return reply("404 Not Found", "", b"", 0) };
            let range = header("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
            let range = range.and_then(|(from, to)| Some((from.parse().ok()?, to.parse::<usize>().ok()? + 1)));
            let (from, to): (usize, usize) = range.unwrap_or((0, bytes.len()));
            let part = &bytes[from..to.min(bytes.len())];
            let body = if method == "head" { &[] } else { part };
            match range {
                None => reply("200 OK", "", body, part.len()),
                Some(_) => {
                    let more = format!("content-range: bytes {from}-{}/{}\r\n", to - 1, bytes.len());
                    reply("206 Partial Content", &more, body, part.len())
                }
            }
        }
    }
}

#[test]
fn an_object_whose_connection_is_lost_is_sent_again() {
    let store = LossyStore::start(("a.bin", 2));
    // More than a socket holds, so that the client is at work when it is left.
    let bytes: Vec<u8> = (0..8_000_000_u32).map(|number| (number / 1000) as u8).collect();
    let object = store.folder().join("a.bin");
    object.write(vec![bytes.clone()]).unwrap();
    assert_eq!(store.begun("a.bin"), 3);
    assert!(object.read().unwrap().unwrap() == bytes);
}

#[test]
fn a_job_whose_objects_are_lost_says_which_and_goes_on() {
    let config =
        r#"{"model_type": "gpt2", "n_layer": 1, "n_head": 1, "n_embd": 4, "vocab_size": 20, "n_positions": 8}"#;
    let model = Model::random(Config::from_json(config).unwrap(), 0).unwrap();
    let store = LossyStore::start(("activations-00001", usize::MAX));
    let run = || {
        let corpus = Corpus::from_ids([vec![1; 4], vec![2; 5], vec![3; 6]]);
        let job = Job::new(&model, corpus).names(["h.0"]).unwrap().unit_bytes(12);
        job.run(&mut Safetensors::at(Place::Object(store.folder())))
    };
    let error = run().unwrap_err();
    assert!(matches!(error, Error::Io { doing: "write", .. }), "{error}");
    assert!(error.to_string().contains("s3://bucket/acts/activations-00001.safetensors"), "{error}");
    assert_eq!(store.begun("activations-00001.safetensors"), 3);
    // What is there is whole, and what is not is known to be missing.
    assert_eq!(store.names(), ["acts/activations-00000.safetensors", "acts/job.json"]);
    let missing = merge_place(&Place::Object(store.folder())).unwrap_err();
    assert!(matches!(missing, Error::Missing { missing: 2, units: 3, .. }), "{missing}");

    store.state.lock().unwrap().loses.1 = 0;
    let report = run().unwrap();
    assert_eq!((report.units_kept, report.units_done), (1, 2));
    assert_eq!(merge_place(&Place::Object(store.folder())).unwrap().tokens, 15);
    assert_eq!(store.begun("activations-00000.safetensors"), 1);
}
