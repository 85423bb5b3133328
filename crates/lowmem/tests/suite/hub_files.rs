//! Checkpoints of the Hub: what is fetched, what is asked, and what happens when the network misbehaves.

use std::{
    fs,
    path::Path,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lowmem::{Checkpoint, Error, HubOptions, LoadOptions, Parts, Progress, Source};
use tch::Tensor;

use crate::{
    fake_hub::{COMMIT, FakeHub, Fault},
    harness::{assert_passed, assert_same, cannot_run, child, in_child, in_child_under, numbers, requests},
};

fn safetensors(tensors: &[(&str, Tensor)]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.shallow_clone())).collect();
    lowmem::save_safetensors(&path, &tensors).unwrap();
    fs::read(path).unwrap()
}

fn named(files: Vec<(&str, Vec<u8>)>) -> Vec<(String, Vec<u8>)> {
    files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect()
}

pub(crate) fn single() -> FakeHub {
    let weights = safetensors(&[("a", numbers(&[300, 100], 1)), ("b", numbers(&[50], 2))]);
    FakeHub::start(named(vec![
        ("config.json", b"{\"model_type\":\"gpt2\"}".to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        ("README.md", b"never needed".to_vec()),
        ("model.safetensors", weights),
        ("pytorch_model.bin", b"never needed".to_vec()),
    ]))
}

fn sharded() -> FakeHub {
    let map = "{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\",\"c\":\"three.safetensors\"}}";
    FakeHub::start(named(vec![
        ("config.json", b"{}".to_vec()),
        ("vocab.json", b"{}".to_vec()),
        ("merges.txt", Vec::new()),
        ("model.safetensors.index.json", map.into()),
        ("one.safetensors", safetensors(&[("a", numbers(&[100, 100], 1))])),
        ("two.safetensors", safetensors(&[("b", numbers(&[100, 100], 2))])),
        ("three.safetensors", safetensors(&[("c", numbers(&[100, 100], 3))])),
    ]))
}

fn options(hub: &FakeHub, cache: &Path) -> HubOptions {
    HubOptions::default()
        .endpoint(hub.endpoint.clone())
        .cache(cache.to_owned())
        .token("secret".to_owned())
        .timeout(Duration::from_secs(10))
        .retries(3)
        .retry_wait(Duration::from_millis(1))
}

/// For servers that fall silent: not longer than the test can wait, not shorter than a busy machine may take.
fn impatient(hub: &FakeHub, cache: &Path) -> HubOptions {
    options(hub, cache).timeout(Duration::from_secs(1))
}

fn blobs(cache: &Path) -> Vec<String> {
    files_in(&cache.join("models--org--model/blobs"))
}

fn model() -> Source {
    Source::Hub("org/model".into())
}

fn place(checkpoint: &Checkpoint, name: &str) -> Result<Tensor, Error> {
    let parts = Parts::new(checkpoint, requests(checkpoint, &[&[name]]), &LoadOptions::default())?;
    Ok(parts.get(0, None)?.remove(0))
}

fn assert_tensor(checkpoint: &Checkpoint, name: &str, expected: Tensor) {
    assert_same(&[(name.to_owned(), place(checkpoint, name).unwrap())], &[(name.to_owned(), expected)]);
}

fn files_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).map(|entries| entries.map(|entry| entry.unwrap().file_name()));
    let mut names: Vec<String> = entries.into_iter().flatten().map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

fn snapshot(cache: &Path) -> std::path::PathBuf {
    cache.join("models--org--model/snapshots").join(COMMIT)
}

#[test]
fn fetches_what_is_used_and_weights_when_they_are() {
    let (hub, cache) = (single(), tempfile::tempdir().unwrap());
    let checkpoint = Checkpoint::find(&model(), &options(&hub, cache.path())).unwrap();
    assert_eq!(checkpoint.read_text("config.json").unwrap(), "{\"model_type\":\"gpt2\"}");
    assert_eq!(files_in(&snapshot(cache.path())), ["config.json", "tokenizer.json"]);
    assert_eq!(checkpoint.index().get("a").unwrap().shape, [300, 100]);
    let asked = hub.take_requests();
    assert!(!asked.iter().any(|request| request.path.contains("README") || request.path.contains("pytorch")));
    // The token goes to the endpoint and nowhere else.
    assert!(asked.iter().all(|request| request.token.is_some() != request.path.starts_with("/cdn/")), "{asked:?}");
    assert_tensor(&checkpoint, "a", numbers(&[300, 100], 1));
    assert_eq!(files_in(&snapshot(cache.path())), ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(fs::read_to_string(cache.path().join("models--org--model/refs/main")).unwrap(), COMMIT);
    assert!(fs::symlink_metadata(snapshot(cache.path()).join("config.json")).unwrap().is_symlink() || cfg!(not(unix)));
    hub.take_requests();
    // From now on the network is not needed, and not even asked for what there is.
    let again = Checkpoint::find(&model(), &options(&hub, cache.path()).offline(true)).unwrap();
    assert_tensor(&again, "b", numbers(&[50], 2));
    let again = Checkpoint::find(&model(), &options(&hub, cache.path())).unwrap();
    assert_tensor(&again, "b", numbers(&[50], 2));
    assert!(hub.take_requests().is_empty());
}

#[test]
fn only_needed_shards_are_fetched() {
    let (hub, cache) = (sharded(), tempfile::tempdir().unwrap());
    let checkpoint = Checkpoint::find(&model(), &options(&hub, cache.path())).unwrap();
    assert_eq!(checkpoint.index().tensors.len(), 3);
    assert_tensor(&checkpoint, "b", numbers(&[100, 100], 2));
    checkpoint.ensure(["c", "no such tensor"]).unwrap();
    let expected = [
        "config.json",
        "merges.txt",
        "model.safetensors.index.json",
        "three.safetensors",
        "two.safetensors",
        "vocab.json",
    ];
    assert_eq!(files_in(&snapshot(cache.path())), expected);
    // Offline the index is still complete, from the headers, and what is missing is said by name when it is needed.
    let offline = Checkpoint::find(&model(), &options(&hub, cache.path()).offline(true)).unwrap();
    assert_tensor(&offline, "c", numbers(&[100, 100], 3));
    let error = place(&offline, "a").unwrap_err();
    assert!(matches!(error, Error::NotCached { ref file, .. } if file == "one.safetensors"), "{error}");
}

#[test]
fn offline_without_a_cache() {
    let (hub, cache) = (single(), tempfile::tempdir().unwrap());
    let error = Checkpoint::find(&model(), &options(&hub, cache.path()).offline(true)).unwrap_err();
    assert!(matches!(error, Error::NotCached { ref id, .. } if id == "org/model"), "{error}");
    assert!(error.to_string().contains("offline"), "{error}");
    assert!(hub.take_requests().is_empty());
}

#[test]
fn bin_where_there_is_nothing_better() {
    let bin = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bin/module.bin");
    let hub =
        FakeHub::start(named(vec![("config.json", b"{}".to_vec()), ("pytorch_model.bin", fs::read(bin).unwrap())]));
    let cache = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::find(&model(), &options(&hub, cache.path())).unwrap();
    assert_eq!(place(&checkpoint, "weight").unwrap().size(), [3, 2]);
    hub.take_requests();
    // That there is no safetensors file is remembered.
    Checkpoint::find(&model(), &options(&hub, cache.path()).offline(true)).unwrap();
    Checkpoint::find(&model(), &options(&hub, cache.path())).unwrap();
    assert!(hub.take_requests().is_empty());
}

#[test]
fn a_gguf_file_of_a_repository_of_many_is_fetched_alone() {
    let bytes =
        || fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/gguf_models/llama/mixed.gguf"));
    let hub = FakeHub::start(named(vec![("a.gguf", bytes().unwrap()), ("b.gguf", bytes().unwrap())]));
    let cache = tempfile::tempdir().unwrap();
    let file = |name: &str| Source::HubFile { id: "org/model".into(), file: name.into() };
    assert_eq!(Source::parse("org/model:b.gguf").unwrap(), file("b.gguf"));
    assert!(matches!(Source::parse("org/model:../b.gguf"), Err(Error::NotFound { .. })));
    let checkpoint = Checkpoint::find(&file("b.gguf"), &options(&hub, cache.path())).unwrap();
    assert_eq!(checkpoint.gguf().unwrap().get_str("general.architecture").unwrap(), Some("llama"));
    assert_eq!(checkpoint.path(), Path::new("org/model:b.gguf"));
    assert_eq!(files_in(&snapshot(cache.path())), ["b.gguf"]);
    hub.take_requests();
    Checkpoint::find(&file("b.gguf"), &options(&hub, cache.path()).offline(true)).unwrap();
    assert!(hub.take_requests().is_empty());
    for (name, offline) in [("c.gguf", false), ("a.gguf", true)] {
        let options = options(&hub, cache.path()).offline(offline);
        let error = Checkpoint::find(&file(name), &options).unwrap_err();
        let named = match &error {
            Error::NotOnHub { file, .. } | Error::NotCached { file, .. } => file.as_str(),
            _ => "",
        };
        assert_eq!(named, name, "{error}");
    }
}

#[test]
fn renamed_repository_and_other_revisions() {
    let (hub, cache) = (single(), tempfile::tempdir().unwrap());
    for (id, revision) in [("model", "main"), ("org/model", "v1"), ("org/model", "refs/pr/1"), ("org/model", COMMIT)] {
        let options = options(&hub, cache.path()).revision(revision.to_owned());
        let checkpoint = Checkpoint::find(&Source::Hub(id.into()), &options).unwrap();
        assert_tensor(&checkpoint, "b", numbers(&[50], 2));
    }
    for revision in ["../main", "", "/etc", "a/../b"] {
        let options = options(&hub, cache.path()).revision(revision.to_owned());
        assert!(matches!(Checkpoint::find(&model(), &options), Err(Error::Revision { .. })), "{revision}");
    }
    let options = options(&hub, cache.path()).revision("absent".to_owned());
    let error = Checkpoint::find(&model(), &options).unwrap_err();
    assert!(matches!(error, Error::NotOnHub { ref revision, .. } if revision == "absent"), "{error}");
}

#[test]
fn missing_and_refused() {
    let (hub, cache) = (single(), tempfile::tempdir().unwrap());
    let error = Checkpoint::find(&Source::Hub("org/absent".into()), &options(&hub, cache.path())).unwrap_err();
    assert!(matches!(error, Error::NotOnHub { .. }), "{error}");
    hub.require_token("the right one");
    let error = Checkpoint::find(&model(), &options(&hub, cache.path())).unwrap_err();
    assert!(matches!(error, Error::Hub { status: Some(401), .. }), "{error}");
    assert!(error.to_string().contains("HF_TOKEN") && error.to_string().contains("config.json"), "{error}");
    assert!(!error.to_string().contains("secret") && !format!("{:?}", options(&hub, cache.path())).contains("secret"));
    let right = options(&hub, cache.path()).token("the right one".to_owned());
    Checkpoint::find(&model(), &right).unwrap();
    let nothing = FakeHub::start(named(vec![("config.json", b"{}".to_vec())]));
    let cache = tempfile::tempdir().unwrap();
    let error = Checkpoint::find(&model(), &options(&nothing, cache.path())).unwrap_err();
    assert!(matches!(error, Error::NoWeights { .. }), "{error}");
}

#[test]
fn passing_failures_are_passed() {
    let (hub, cache) = (single(), tempfile::tempdir().unwrap());
    for (path, times, fault) in [
        ("config.json", 2, Fault::Status(503)),
        ("config.json", 1, Fault::Status(429)),
        ("tokenizer.json", 1, Fault::Cut(0)),
        ("/cdn/model.safetensors", 1, Fault::Cut(100)),
        ("/cdn/model.safetensors", 1, Fault::Stall(2_000)),
        ("/cdn/model.safetensors", 1, Fault::Status(500)),
    ] {
        hub.fault(path, times, fault);
    }
    let checkpoint = Checkpoint::find(&model(), &impatient(&hub, cache.path())).unwrap();
    assert_tensor(&checkpoint, "a", numbers(&[300, 100], 1));
    assert_eq!(hub.faults_left(), 0);
}

#[test]
fn cut_slow_and_rangeless_downloads_are_continued() {
    let (hub, cache) = (single(), tempfile::tempdir().unwrap());
    let checkpoint = Checkpoint::find(&model(), &impatient(&hub, cache.path())).unwrap();
    hub.take_requests();
    // The first request asks how large the file is; each cut brings something, so that any number of them is survived.
    hub.fault("/cdn/model.safetensors", 1, Fault::Cut(1));
    hub.fault("/cdn/model.safetensors", 6, Fault::Cut(10_000));
    hub.fault("/cdn/model.safetensors", 1, Fault::Stall(10_000));
    hub.fault("/cdn/model.safetensors", 1, Fault::Slow(Duration::from_millis(2)));
    assert_tensor(&checkpoint, "a", numbers(&[300, 100], 1));
    let ranges: Vec<_> = hub.take_requests().into_iter().filter(|request| request.path.starts_with("/cdn")).collect();
    let last = ranges.last().unwrap().range.clone().unwrap();
    assert!(last.starts_with("bytes=70000-"), "{ranges:?}");
    assert_eq!(hub.faults_left(), 0);
    // A server that cannot continue.
    let (hub, cache) = (single(), tempfile::tempdir().unwrap());
    let checkpoint = Checkpoint::find(&model(), &impatient(&hub, cache.path())).unwrap();
    hub.fault("/cdn/model.safetensors", 1, Fault::Cut(1));
    hub.fault("/cdn/model.safetensors", 1, Fault::Cut(10_000));
    hub.fault("/cdn/model.safetensors", 1, Fault::IgnoreRange);
    assert_tensor(&checkpoint, "a", numbers(&[300, 100], 1));
    assert_eq!(hub.faults_left(), 0);
}

#[test]
fn lasting_failures_end_and_keep_what_came() {
    let (hub, cache) = (single(), tempfile::tempdir().unwrap());
    let checkpoint = Checkpoint::find(&model(), &options(&hub, cache.path())).unwrap();
    hub.fault("/cdn/model.safetensors", 1, Fault::Cut(1));
    hub.fault("/cdn/model.safetensors", 1, Fault::Cut(50_000));
    hub.fault("/cdn/model.safetensors", 4, Fault::Status(502));
    let error = place(&checkpoint, "a").unwrap_err();
    assert!(matches!(error, Error::Hub { ref url, .. } if url.contains("model.safetensors")), "{error}");
    assert!(error.to_string().contains("tried 4 times"), "{error}");
    hub.take_requests();
    assert_tensor(&checkpoint, "a", numbers(&[300, 100], 1));
    let asked = hub.take_requests();
    assert!(
        asked.iter().any(|request| request.range.as_deref().is_some_and(|range| range.starts_with("bytes=50000-")))
    );
    let unreachable = options(&hub, cache.path()).endpoint("http://127.0.0.1:9".to_owned());
    let error = Checkpoint::find(&Source::Hub("org/other".into()), &unreachable).unwrap_err();
    assert!(matches!(error, Error::Hub { status: None, .. }), "{error}");
    let nonsense = options(&hub, cache.path()).endpoint("not an address".to_owned());
    assert!(matches!(Checkpoint::find(&Source::Hub("org/other".into()), &nonsense), Err(Error::Hub { .. })));
}

#[test]
fn bytes_that_are_not_the_promised_ones_are_removed() {
    let (hub, cache) = (single(), tempfile::tempdir().unwrap());
    let checkpoint = Checkpoint::find(&model(), &options(&hub, cache.path())).unwrap();
    let before = blobs(cache.path());
    let refused = || {
        let error = place(&checkpoint, "a").unwrap_err();
        let Error::Digest { url, expected, found } = &error else { panic!("{error}") };
        assert!(url.contains("model.safetensors") && expected.len() == 64 && found.len() == 64, "{error}");
        assert_ne!(expected, found);
        assert_eq!(blobs(cache.path()), before);
        assert!(!files_in(&snapshot(cache.path())).contains(&"model.safetensors".to_owned()));
    };
    // The first request asks how large the file is. On the way:
    hub.fault("/cdn/model.safetensors", 1, Fault::Cut(1));
    hub.fault("/cdn/model.safetensors", 1, Fault::Damage(30_000));
    refused();
    // On the disk, where an earlier try has left them:
    hub.fault("/cdn/model.safetensors", 1, Fault::Cut(1));
    hub.fault("/cdn/model.safetensors", 1, Fault::Cut(50_000));
    hub.fault("/cdn/model.safetensors", 4, Fault::Status(502));
    assert!(matches!(place(&checkpoint, "a"), Err(Error::Hub { .. })));
    let name = blobs(cache.path()).into_iter().find(|name| name.ends_with(".incomplete")).unwrap();
    let path = cache.path().join("models--org--model/blobs").join(name);
    let mut bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 50_000);
    bytes[20_000] ^= 1;
    fs::write(&path, bytes).unwrap();
    refused();
    // All of them there, but for the name.
    fs::write(&path, vec![7; checkpoint.index().files[0].bytes as usize]).unwrap();
    refused();
    assert_eq!(hub.faults_left(), 0);
    assert_tensor(&checkpoint, "a", numbers(&[300, 100], 1));
    assert_tensor(&checkpoint, "b", numbers(&[50], 2));
}

#[test]
fn bad_files_of_the_hub_are_refused_by_name() {
    let (hub, cache) = (sharded(), tempfile::tempdir().unwrap());
    hub.set_file("one.safetensors", vec![255; 1000]);
    let error = Checkpoint::find(&model(), &options(&hub, cache.path())).unwrap_err();
    assert!(matches!(error, Error::HeaderTooLarge { ref file, .. } if file.ends_with("one.safetensors")), "{error}");
    let (hub, cache) = (sharded(), tempfile::tempdir().unwrap());
    hub.set_file("model.safetensors.index.json", b"{\"weight_map\":{\"a\":\"../../evil\"}}".to_vec());
    let error = Checkpoint::find(&model(), &options(&hub, cache.path())).unwrap_err();
    assert!(matches!(error, Error::ShardOutside { ref tensor, .. } if tensor == "a"), "{error}");
    let (hub, cache) = (sharded(), tempfile::tempdir().unwrap());
    hub.set_file("model.safetensors.index.json", b"{\"weight_map\":{\"a\":\"absent.safetensors\"}}".to_vec());
    let error = Checkpoint::find(&model(), &options(&hub, cache.path())).unwrap_err();
    assert!(matches!(error, Error::ShardMissing { ref tensor, .. } if tensor == "a"), "{error}");
}

#[test]
fn header_longer_than_the_first_guess() {
    let tensors: Vec<(String, Tensor)> = (0..1500).map(|at| (format!("tensor.{at:04}"), numbers(&[2], at))).collect();
    let tensors: Vec<(&str, Tensor)> =
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.shallow_clone())).collect();
    let hub =
        FakeHub::start(named(vec![("config.json", b"{}".to_vec()), ("model.safetensors", safetensors(&tensors))]));
    let cache = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::find(&model(), &options(&hub, cache.path())).unwrap();
    assert_eq!(checkpoint.index().tensors.len(), 1500);
    assert_tensor(&checkpoint, "tensor.1499", numbers(&[2], 1499));
}

#[derive(Default)]
struct Recorder {
    already: AtomicU64,
    bytes: AtomicU64,
    lines: Mutex<Vec<String>>,
}

impl Progress for Recorder {
    fn download_begin(&self, file: &str, bytes: u64, already: u64) {
        self.lines.lock().unwrap().push(format!("{file} {bytes}"));
        self.already.fetch_add(already, Ordering::Relaxed);
    }
    fn downloaded(&self, _file: &str, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
    fn download_end(&self, file: &str) {
        self.lines.lock().unwrap().push(format!("{file} done"));
    }
}

#[test]
fn downloads_are_told() {
    let (hub, cache) = (single(), tempfile::tempdir().unwrap());
    let recorder = Arc::new(Recorder::default());
    let options = options(&hub, cache.path()).progress(recorder.clone());
    Checkpoint::find(&model(), &options).unwrap().ensure(["a"]).unwrap();
    let lines = recorder.lines.lock().unwrap().clone();
    assert_eq!(lines[..2], ["config.json 21", "config.json done"]);
    assert_eq!(lines.last().unwrap(), "model.safetensors done");
}

/// Dies in the middle of a download.
struct Dies(AtomicU64);

impl Progress for Dies {
    fn downloaded(&self, file: &str, bytes: u64) {
        if file == "model.safetensors" && self.0.fetch_add(bytes, Ordering::Relaxed) + bytes > 20_000 {
            std::process::abort();
        }
    }
}

child!(killed_child, |variables: &dyn Fn(&str) -> String| {
    let options = HubOptions::default()
        .endpoint(variables("TEST_ENDPOINT"))
        .cache(PathBuf::from(variables("TEST_CACHE")))
        .progress(Arc::new(Dies(AtomicU64::new(0))));
    Checkpoint::find(&model(), &options).unwrap().ensure(["a"]).unwrap();
});

#[test]
fn killed_download_is_completed_by_the_next_run() {
    let (hub, cache) = (single(), tempfile::tempdir().unwrap());
    hub.fault("/cdn/model.safetensors", 10, Fault::Slow(Duration::from_millis(1)));
    let variables = [("TEST_ENDPOINT", hub.endpoint.as_str()), ("TEST_CACHE", cache.path().to_str().unwrap())];
    assert!(!in_child("hub_files::killed_child", &variables).status.success());
    let recorder = Arc::new(Recorder::default());
    let options = options(&hub, cache.path()).progress(recorder.clone());
    let checkpoint = Checkpoint::find(&model(), &options).unwrap();
    assert_tensor(&checkpoint, "a", numbers(&[300, 100], 1));
    assert!(recorder.already.load(Ordering::Relaxed) > 10_000, "it went on from where the other was killed");
    let blobs = blobs(cache.path());
    assert!(!blobs.iter().any(|name| name.ends_with("incomplete")), "{blobs:?}");
}

child!(environment_child, |_: &dyn Fn(&str) -> String| {
    match Checkpoint::find(&model(), &HubOptions::default()) {
        Ok(checkpoint) => println!("found {}", checkpoint.folder().display()),
        Err(error) => println!("error {error}"),
    }
});

#[test]
fn the_environment_is_honoured() {
    let (hub, home) = (single(), tempfile::tempdir().unwrap());
    hub.require_token("stored");
    fs::write(home.path().join("token"), "stored\n").unwrap();
    let home_text = home.path().to_str().unwrap();
    let run = |variables: &[(&str, &str)]| {
        String::from_utf8(in_child("hub_files::environment_child", variables).stdout).unwrap()
    };
    let offline = run(&[("HF_HOME", home_text), ("HF_ENDPOINT", &hub.endpoint), ("HF_HUB_OFFLINE", "1")]);
    assert!(offline.contains("error") && offline.contains("offline"), "{offline}");
    assert!(hub.take_requests().is_empty());
    let wrong = run(&[("HF_HOME", home_text), ("HF_ENDPOINT", &hub.endpoint), ("HF_TOKEN", "wrong")]);
    assert!(wrong.contains("HF_TOKEN"), "{wrong}");
    let found = run(&[("HF_HOME", home_text), ("HF_ENDPOINT", &hub.endpoint)]);
    assert!(found.contains(home.path().join("hub").to_str().unwrap()), "{found}");
    let other = tempfile::tempdir().unwrap();
    let cache = other.path().to_str().unwrap();
    let found = run(&[("HF_HOME", home_text), ("HF_HUB_CACHE", cache), ("HF_ENDPOINT", &hub.endpoint)]);
    assert!(found.contains(&format!("found {cache}")), "{found}");
}

child!(full_disk_child, |variables: &dyn Fn(&str) -> String| {
    let options =
        HubOptions::default().endpoint(variables("TEST_ENDPOINT")).cache(PathBuf::from(variables("TEST_CACHE")));
    let result = Checkpoint::find(&model(), &options).and_then(|found| found.ensure(["a"]));
    let Err(Error::Io { path, source }) = result else { panic!("{result:?}") };
    assert_eq!(source.kind(), std::io::ErrorKind::StorageFull, "{path:?}");
});

/// A disk of 64 kB, which the file does not fit. Only the child sees it, and it goes with the child.
#[test]
#[cfg(target_os = "linux")]
fn full_disk() {
    let (hub, cache) = (single(), tempfile::tempdir().unwrap());
    let mount = "mount -t tmpfs -o size=64k tmpfs \"$TEST_CACHE\" || exit 1; exec \"$0\" \"$@\"";
    let variables = [("TEST_ENDPOINT", hub.endpoint.as_str()), ("TEST_CACHE", cache.path().to_str().unwrap())];
    let test = "hub_files::full_disk_child";
    let mut why = String::new();
    // For root, and for anybody where the kernel lets them be root of a little world.
    for unshare in [&["unshare", "--mount"][..], &["unshare", "--map-root-user", "--mount"]] {
        let output = in_child_under(&[unshare, &["sh", "-c", mount]].concat(), test, &variables);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.code() != Some(1) {
            return assert_passed(test, &output);
        }
        why = text;
    }
    cannot_run(&format!("no small file system can be mounted here: {why}"));
}

#[test]
fn sources() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    assert_eq!(Source::parse(path).unwrap(), Source::Local(folder.path().to_owned()));
    for id in ["gpt2", "openai-community/gpt2-xl", "EleutherAI/gpt-neo-2.7B", "a_b/c.d"] {
        assert_eq!(Source::parse(id).unwrap(), Source::Hub(id.into()));
    }
    for text in [
        "./gpt2",
        "../gpt2",
        "/gpt2",
        "a/b/c",
        "a/",
        "~/gpt2",
        "C:\\gpt2",
        "",
        "model.safetensors",
        "x/y.bin",
        "a b",
        "a--b",
    ] {
        assert!(matches!(Source::parse(text), Err(Error::NotFound { .. })), "{text}");
    }
}

#[test]
fn a_data_set_is_listed_once_and_its_files_are_fetched_as_they_are_asked_for() {
    let hub = FakeHub::start(named(vec![
        ("README.md", b"never needed".to_vec()),
        ("data/train/b.jsonl", b"\"b\"\n".to_vec()),
        ("data/a.jsonl", b"\"a\"\n".to_vec()),
    ]));
    let cache = tempfile::tempdir().unwrap();
    let find = |options: HubOptions| lowmem::Dataset::find("org/data", &options);
    let none = find(options(&hub, cache.path()).offline(true)).err().unwrap();
    assert!(matches!(none, Error::NotCached { .. }), "{none}");
    hub.fault("/api/", 1, Fault::Status(503));
    hub.fault("/api/", 1, Fault::Cut(10));
    let data = find(options(&hub, cache.path())).unwrap();
    assert_eq!(hub.faults_left(), 0);
    assert_eq!(data.names(), ["README.md", "data/a.jsonl", "data/train/b.jsonl"]);
    assert_eq!(data.commit(), COMMIT);
    hub.take_requests();
    let path = data.bring("data/train/b.jsonl").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"\"b\"\n");
    assert_eq!(path, data.folder().join("data/train/b.jsonl"));
    let asked: Vec<String> = hub.take_requests().into_iter().map(|request| request.path).collect();
    let address = format!("/datasets/org/data/resolve/{COMMIT}/data/train/b.jsonl");
    assert!(!asked.is_empty() && asked.iter().all(|path| *path == address), "{asked:?}");
    assert!(matches!(data.bring("data/c.jsonl"), Err(Error::NotOnHub { .. })));
    // From now on without the Hub: what is here is used, what is not is named.
    hub.take_requests();
    let again = find(options(&hub, cache.path()).offline(true)).unwrap();
    assert_eq!(again.names(), data.names());
    assert_eq!(again.bring("data/train/b.jsonl").unwrap(), path);
    let missing = again.bring("data/a.jsonl").unwrap_err();
    assert!(matches!(&missing, Error::NotCached { file, .. } if file == "data/a.jsonl"), "{missing}");
    assert!(hub.take_requests().is_empty());
    // Another revision is asked for by its own name.
    find(options(&hub, cache.path()).revision("refs/pr/1".to_owned())).unwrap();
    assert_eq!(hub.take_requests()[0].path, "/api/datasets/org/data/revision/refs%2Fpr%2F1");
    let unknown = find(options(&hub, cache.path()).revision("v2".to_owned())).err().unwrap();
    assert!(matches!(unknown, Error::Hub { status: Some(404), .. }), "{unknown}");
    // Names that would leave the cache are no files.
    hub.set_file("../../outside", Vec::new());
    let outside = find(options(&hub, tempfile::tempdir().unwrap().path())).err().unwrap();
    assert!(outside.to_string().contains("names that no file can have"), "{outside}");
}
