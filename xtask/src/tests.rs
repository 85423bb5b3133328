//! What crosses modules: from a request to the link, over a loopback server, with synthetic archives and wheels.

use std::{
    cell::Cell,
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Result, bail};
use indicatif::ProgressBar;
use tempfile::TempDir;
use zip::{ZipWriter, write::SimpleFileOptions};

use crate::{
    cache::Entry,
    download::{Patience, download},
    environment::{Environment, Platform},
    folder::Folder,
    libtorch::{From, Provided, Request, provide_from},
    link::{self, Linked, Pointed},
    routes::{Archive, Flavour, Route, archive_url, companions, unpack_wheel},
    unpack,
};

/// The files of a libtorch of a version, small.
fn files(version: &str) -> Vec<(String, Vec<u8>)> {
    let mut parts = version.split(['.', '+']);
    let mut part = || parts.next().unwrap().to_owned();
    let header = format!(
        "#define TORCH_VERSION_MAJOR {}\n#define TORCH_VERSION_MINOR {}\n#define TORCH_VERSION_PATCH {}\n",
        part(),
        part(),
        part()
    );
    vec![
        ("include/torch/csrc/api/include/torch/torch.h".into(), b"#pragma once\n".to_vec()),
        ("include/torch/headeronly/version.h".into(), header.into_bytes()),
        ("lib/libc10.so".into(), b"c10".to_vec()),
        ("lib/libtorch.so".into(), b"torch".to_vec()),
        ("lib/libtorch_cpu.so".into(), vec![7; 100_000]),
        ("build-version".into(), format!("{version}\n").into_bytes()),
    ]
}

fn write_libtorch(at: &Path, version: &str) {
    for (name, bytes) in files(version) {
        let path = at.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

fn zipped<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Vec<u8> {
    let mut zip = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in files {
        zip.start_file(name, SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn archive(version: &str) -> Vec<u8> {
    let files: Vec<_> = files(version).into_iter().map(|(name, bytes)| (format!("libtorch/{name}"), bytes)).collect();
    zipped(files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())))
}

/// Answers each connection with what `answer` says for its number (from 0) and request, then closes it.
fn serve(answer: impl Fn(u32, &str) -> Vec<u8> + Send + 'static) -> (String, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let count = Arc::new(AtomicU32::new(0));
    let counter = count.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut request = String::new();
            while reader.read_line(&mut request).unwrap_or(0) > 0 && !request.ends_with("\r\n\r\n") {}
            let number = counter.fetch_add(1, Ordering::SeqCst);
            let _ = stream.write_all(&answer(number, &request));
        }
    });
    (base, count)
}

fn answer(status: &str, headers: &str, length: usize, body: &[u8]) -> Vec<u8> {
    let mut out =
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n").into_bytes();
    out.extend_from_slice(body);
    out
}

const QUICK: Patience = Patience { tries: 3, pause: Duration::from_millis(1), silence: Duration::from_secs(5) };

fn linux() -> Platform {
    Platform { os: "linux".into(), arch: "x86_64".into() }
}

/// A workspace and a cache, both empty.
struct World {
    folder: TempDir,
    environment: Environment,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let workspace = folder.path().join("ws");
        fs::create_dir(&workspace).unwrap();
        fs::write(workspace.join("build.rs"), "fn main() {}").unwrap();
        let environment = Environment {
            variables: Default::default(),
            workspace,
            cache_home: Some(folder.path().join("cache")),
            platform: linux(),
        };
        Self { folder, environment }
    }

    fn set(&mut self, name: &str, value: impl AsRef<Path>) {
        self.environment.variables.insert(name.into(), value.as_ref().into());
    }

    /// A libtorch of the user's, outside the cache.
    fn own(&self, name: &str, version: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        write_libtorch(&path, version);
        path
    }

    fn cache(&self) -> PathBuf {
        self.environment.cache().unwrap()
    }

    fn entry(&self) -> PathBuf {
        self.cache().join("2.13.0-cpu")
    }

    fn provide(&self, request: &Request, routes: Vec<Box<dyn Route>>) -> Result<Provided> {
        provide_from(&self.environment, request, &routes)
    }

    fn linked(&self) -> Option<PathBuf> {
        fs::read_link(self.environment.link()).ok()
    }

    fn names_in_cache(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.cache())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// A route that makes a libtorch of a version, or fails with a reason.
struct Fake {
    outcome: Result<&'static str, &'static str>,
    used: Rc<Cell<u32>>,
}

impl Fake {
    fn makes(version: &'static str) -> (Box<dyn Route>, Rc<Cell<u32>>) {
        let used = Rc::new(Cell::new(0));
        (Box::new(Self { outcome: Ok(version), used: used.clone() }), used)
    }

    fn fails(reason: &'static str) -> Box<dyn Route> {
        Box::new(Self { outcome: Err(reason), used: Rc::default() })
    }
}

impl Route for Fake {
    fn name(&self) -> String {
        match self.outcome {
            Ok(version) => format!("a fake {version}"),
            Err(_) => "a fake that fails".into(),
        }
    }

    fn install(&self, to: &Path, work: &Path) -> Result<()> {
        self.used.set(self.used.get() + 1);
        assert!(to.is_dir() && work.is_dir());
        match self.outcome {
            Ok(version) => write_libtorch(to, version),
            Err(reason) => bail!("{reason}"),
        }
        Ok(())
    }
}

fn auto() -> Request {
    Request::default()
}

// The order.

#[test]
fn an_empty_cache_is_filled_once_and_then_found() {
    let world = World::new();
    let (route, used) = Fake::makes("2.13.0+cpu");
    let first = world.provide(&auto(), vec![route]).unwrap();
    assert_eq!(first.folder.path, world.entry());
    assert_eq!((first.pointed, used.get()), (Pointed::New, 1));
    assert_eq!(world.linked().unwrap(), world.entry());
    assert_eq!(world.names_in_cache(), ["2.13.0-cpu", "2.13.0-cpu.lock"]);

    let second = world.provide(&auto(), vec![]).unwrap();
    assert_eq!((second.because, second.pointed), ("the link .libtorch", Pointed::Unchanged));

    // Another workspace of the same user.
    fs::remove_file(world.environment.link()).unwrap();
    let third = world.provide(&auto(), vec![]).unwrap();
    assert_eq!((third.because, third.pointed), ("the cache", Pointed::New));
}

#[test]
fn routes_are_tried_in_order_and_the_first_that_works_is_used() {
    let world = World::new();
    let ((good, used), (spare, unused)) = (Fake::makes("2.13.0"), Fake::makes("2.13.0"));
    world.provide(&auto(), vec![Fake::fails("no network"), good, spare]).unwrap();
    assert_eq!((used.get(), unused.get()), (1, 0));
}

#[test]
fn the_users_libtorch_wins_and_nothing_is_installed_or_linked() {
    let mut world = World::new();
    let own = world.own("own", "2.13.0+cu130");
    world.set("LIBTORCH", &own);
    let provided = world.provide(&auto(), vec![]).unwrap();
    assert_eq!((provided.folder.path, provided.because), (own, "LIBTORCH"));
    assert!(world.linked().is_none() && !world.cache().exists());
}

#[test]
fn the_libtorch_of_cargo_config_is_not_the_users() {
    let mut world = World::new();
    world.set("LIBTORCH", world.environment.link());
    let (route, used) = Fake::makes("2.13.0");
    world.provide(&auto(), vec![route]).unwrap();
    assert_eq!(used.get(), 1);
}

#[test]
fn a_wrong_libtorch_of_the_users_is_refused_with_both_versions() {
    let mut world = World::new();
    let own = world.own("own", "2.5.1+cpu");
    world.set("LIBTORCH", &own);
    let text = format!("{:#}", world.provide(&auto(), vec![]).unwrap_err());
    for part in ["LIBTORCH", own.to_str().unwrap(), "2.5.1", "2.13.0"] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    world.set("LIBTORCH_BYPASS_VERSION_CHECK", "1");
    assert_eq!(world.provide(&auto(), vec![]).unwrap().folder.version.release, "2.5.1");
}

#[test]
fn a_libtorch_of_the_users_that_is_none_is_refused() {
    let mut world = World::new();
    world.set("LIBTORCH", "/no/such/folder");
    assert!(format!("{:#}", world.provide(&auto(), vec![]).unwrap_err()).contains("/no/such/folder"));
    world.set("LIBTORCH", "relative/path");
    assert!(format!("{:#}", world.provide(&auto(), vec![]).unwrap_err()).contains("absolute"));
}

#[test]
fn headers_and_libraries_may_have_folders_of_their_own() {
    let mut world = World::new();
    let own = world.own("own", "2.13.0");
    let lib = world.folder.path().join("libs");
    fs::create_dir(&lib).unwrap();
    fs::rename(own.join("lib"), lib.join("lib")).unwrap();
    world.set("LIBTORCH", &own);
    assert!(world.provide(&auto(), vec![]).is_err());
    world.set("LIBTORCH_LIB", &lib);
    world.provide(&auto(), vec![]).unwrap();
}

#[test]
fn a_folder_is_linked_as_it_is() {
    let world = World::new();
    let own = world.own("own", "2.13.0");
    let request = Request { from: From::Folder(own.clone()), ..auto() };
    world.provide(&request, vec![]).unwrap();
    assert_eq!(world.linked().unwrap(), own);
    // And stays, without being named again.
    assert_eq!(world.provide(&auto(), vec![]).unwrap().folder.path, own);
    let old = Request { from: From::Folder(world.own("old", "2.12.0")), ..auto() };
    assert!(world.provide(&old, vec![]).unwrap_err().to_string().contains("2.12.0"));
    assert_eq!(world.linked().unwrap(), own);
}

#[test]
fn a_broken_link_is_replaced() {
    let world = World::new();
    std::os::unix::fs::symlink("/gone", world.environment.link()).unwrap();
    let provided = world.provide(&auto(), vec![Fake::makes("2.13.0").0]).unwrap();
    assert_eq!(provided.pointed, Pointed::Changed);
    assert_eq!(world.linked().unwrap(), world.entry());
}

#[test]
fn a_link_to_another_version_is_replaced() {
    let world = World::new();
    std::os::unix::fs::symlink(world.own("old", "2.12.1"), world.environment.link()).unwrap();
    assert_eq!(world.provide(&auto(), vec![Fake::makes("2.13.0").0]).unwrap().pointed, Pointed::Changed);
}

#[test]
fn a_folder_in_place_of_the_link_is_respected_or_refused_but_never_replaced() {
    let world = World::new();
    write_libtorch(&world.environment.link(), "2.13.0");
    assert_eq!(world.provide(&auto(), vec![]).unwrap().because, "the folder .libtorch");
    let pip = Request { from: From::Pip, ..auto() };
    assert!(world.provide(&pip, vec![]).unwrap_err().to_string().contains("move it away"));
    fs::write(world.environment.link().join("build-version"), "2.4.0").unwrap();
    let text = world.provide(&auto(), vec![]).unwrap_err().to_string();
    assert!(text.contains("2.4.0") && text.contains("move it away"), "{text}");
    assert!(world.environment.link().join("lib/libtorch.so").is_file());
}

#[test]
fn an_archive_unpacked_into_the_cache_by_hand_is_found() {
    for inner in ["", "libtorch"] {
        let world = World::new();
        write_libtorch(&world.entry().join(inner), "2.13.0+cpu");
        assert_eq!(world.provide(&auto(), vec![]).unwrap().because, "the cache");
    }
}

#[test]
fn flavours_have_entries_of_their_own() {
    let world = World::new();
    world.provide(&auto(), vec![Fake::makes("2.13.0+cpu").0]).unwrap();
    let request = Request { flavour: Some(Flavour::Cu130), ..auto() };
    world.provide(&request, vec![Fake::makes("2.13.0+cu130").0]).unwrap();
    assert_eq!(world.linked().unwrap(), world.cache().join("2.13.0-cu130"));
    let back = Request { flavour: Some(Flavour::Cpu), ..auto() };
    assert_eq!(world.provide(&back, vec![]).unwrap().folder.path, world.entry());
}

// Failures.

#[test]
fn one_message_names_every_attempt_and_the_ways_out() {
    let world = World::new();
    std::os::unix::fs::symlink("/gone", world.environment.link()).unwrap();
    fs::create_dir_all(world.entry()).unwrap();
    let routes = vec![Fake::fails("host not found"), Fake::makes("2.9.0").0];
    let text = world.provide(&auto(), routes).unwrap_err().to_string();
    for part in [
        "/gone",
        "torch.h is not there",
        "host not found",
        "a fake 2.9.0",
        "is version 2.9.0",
        "LIBTORCH to",
        "LIBTORCH_USE_PYTORCH=1",
        world.entry().to_str().unwrap(),
        "libtorch-shared-with-deps-2.13.0%2Bcpu.zip",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

#[test]
fn what_is_unusable_never_enters_the_cache() {
    let world = World::new();
    assert!(world.provide(&auto(), vec![Fake::makes("2.9.0").0]).is_err());
    assert_eq!(world.names_in_cache(), ["2.13.0-cpu.lock"]);
    assert!(world.linked().is_none());
}

#[test]
fn leftovers_of_a_killed_run_are_removed() {
    let world = World::new();
    let half = world.cache().join(".2.13.0-cpu.staging-abc123");
    fs::create_dir_all(half.join("work")).unwrap();
    fs::write(half.join("work/libtorch.zip"), "half").unwrap();
    // Killed holding the lock: the file stays, the lock does not.
    File::create(world.cache().join("2.13.0-cpu.lock")).unwrap();
    let other = world.cache().join(".2.13.0-cu130.staging-abc123");
    fs::create_dir(&other).unwrap();
    world.provide(&auto(), vec![Fake::makes("2.13.0").0]).unwrap();
    assert!(!half.exists());
    assert!(other.exists(), "another flavour may be at work");
}

#[test]
fn a_run_killed_between_the_renames_is_repaired() {
    let world = World::new();
    let aside = world.cache().join(".2.13.0-cpu.staging-abc123/old");
    write_libtorch(&aside, "2.13.0");
    world.provide(&auto(), vec![Fake::makes("2.13.0").0]).unwrap();
    assert!(!aside.exists() && world.entry().is_dir());
}

#[test]
fn a_broken_entry_is_replaced() {
    let world = World::new();
    write_libtorch(&world.entry(), "2.13.0");
    fs::remove_file(world.entry().join("lib/libc10.so")).unwrap();
    world.provide(&auto(), vec![Fake::makes("2.13.0").0]).unwrap();
    assert!(world.entry().join("lib/libc10.so").is_file());
}

#[test]
fn force_installs_again() {
    let world = World::new();
    world.provide(&auto(), vec![Fake::makes("2.13.0").0]).unwrap();
    fs::write(world.entry().join("marker"), "old").unwrap();
    let force = Request { force: true, ..auto() };
    let provided = world.provide(&force, vec![Fake::makes("2.13.0").0]).unwrap();
    assert_eq!(provided.pointed, Pointed::Unchanged);
    assert!(!world.entry().join("marker").exists());
    // A failing one leaves what was there.
    assert!(world.provide(&force, vec![Fake::fails("no network")]).is_err());
    assert!(world.entry().join("lib/libc10.so").is_file());
}

#[test]
fn two_runs_at_once_install_once() {
    let world = World::new();
    let cache = world.cache();
    let entry = Entry::new(&cache, "2.13.0-cpu");
    let lock = entry.lock(|| panic!("nobody else is there")).unwrap();
    let environment = world.environment.clone();
    let (said, waiting) = std::sync::mpsc::channel();
    let other = thread::spawn(move || {
        let entry = Entry::new(&environment.cache().unwrap(), "2.13.0-cpu");
        let lock = entry.lock(|| said.send(()).unwrap()).unwrap();
        let found = entry.installed(&environment.platform).unwrap().unwrap();
        drop(lock);
        found.path
    });
    waiting.recv().unwrap();
    let stage = lock.stage().unwrap();
    write_libtorch(&stage.path().join("libtorch"), "2.13.0");
    lock.commit(&stage.path().join("libtorch")).unwrap();
    drop(stage);
    drop(lock);
    assert_eq!(other.join().unwrap(), world.entry());
}

// The link.

#[test]
fn a_link_that_is_right_is_not_touched_and_one_that_moves_makes_cargo_look_again() {
    let world = World::new();
    let environment = &world.environment;
    let time = || fs::metadata(environment.workspace.join("build.rs")).unwrap().modified().unwrap();
    let inspect = |path: &Path| Folder::inspect(path, &linux()).unwrap();
    let first = inspect(&world.own("first", "2.13.0"));
    let past = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    File::options().append(true).open(environment.workspace.join("build.rs")).unwrap().set_modified(past).unwrap();

    assert_eq!(link::point(environment, &first).unwrap(), Pointed::New);
    assert_eq!(link::point(environment, &first).unwrap(), Pointed::Unchanged);
    assert_eq!(time(), past);

    let second = inspect(&world.own("second", "2.13.0"));
    assert_eq!(link::point(environment, &second).unwrap(), Pointed::Moved);
    assert_ne!(time(), past);

    let third = world.own("third", "2.13.0+cu130");
    fs::write(third.join("lib/libtorch_cuda.so"), "").unwrap();
    let third = inspect(&third);
    assert!(third.cuda);
    assert_eq!(link::point(environment, &third).unwrap(), Pointed::Changed);
    assert!(matches!(link::look(environment), Linked::Link(path, Ok(_)) if path == third.path));
    let names: Vec<_> = fs::read_dir(&environment.workspace).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

// The archive.

fn from_server(world: &World, base: &str) -> Result<Provided> {
    let route = Archive { url: archive_url(base, &linux(), Flavour::Cpu), patience: QUICK };
    world.provide(&auto(), vec![Box::new(route)])
}

#[test]
fn the_archive_is_downloaded_unpacked_and_linked() {
    let zip = archive("2.13.0+cpu");
    let (base, _) = serve(move |_, request| {
        assert!(request.starts_with("GET /cpu/libtorch-shared-with-deps-2.13.0%2Bcpu.zip "), "{request}");
        answer("200 OK", "", zip.len(), &zip)
    });
    let world = World::new();
    let provided = from_server(&world, &base).unwrap();
    assert_eq!(provided.folder.version.to_string(), "2.13.0+cpu");
    assert_eq!(fs::read(world.entry().join("lib/libtorch_cpu.so")).unwrap(), vec![7; 100_000]);
    assert_eq!(world.names_in_cache(), ["2.13.0-cpu", "2.13.0-cpu.lock"]);
}

#[test]
fn a_refusal_is_final() {
    let (base, asked) = serve(|_, _| answer("404 Not Found", "", 4, b"gone"));
    let text = from_server(&World::new(), &base).unwrap_err().to_string();
    assert!(text.contains("404") && text.contains(&base), "{text}");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[test]
fn nobody_listening_is_final() {
    let base = format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let text = from_server(&World::new(), &base).unwrap_err().to_string();
    assert!(text.contains("refused") && !text.contains("in a row"), "{text}");
}

#[test]
fn a_passing_failure_is_tried_again() {
    let zip = archive("2.13.0+cpu");
    let (base, asked) = serve(move |number, _| match number {
        0 => answer("503 Service Unavailable", "", 0, b""),
        _ => answer("200 OK", "", zip.len(), &zip),
    });
    from_server(&World::new(), &base).unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[test]
fn a_cut_download_goes_on_where_it_ended() {
    let bytes: Vec<u8> = (0..50_000u32).map(|n| n as u8).collect();
    let body = bytes.clone();
    let (base, asked) = serve(move |number, request| {
        let from = match number {
            0 => return answer("200 OK", "ETag: \"v1\"\r\n", body.len(), &body[..20_000]),
            _ => request
                .to_lowercase()
                .split("range: bytes=")
                .nth(1)
                .unwrap()
                .split('-')
                .next()
                .unwrap()
                .parse::<usize>(),
        }
        .unwrap();
        assert!(request.to_lowercase().contains("if-range: \"v1\""), "{request}");
        let rest = &body[from..];
        let range = format!("ETag: \"v1\"\r\nContent-Range: bytes {from}-{}/{}\r\n", body.len() - 1, body.len());
        // Cut once more, nearer to the end.
        let sent = if number == 1 { rest.len() / 2 } else { rest.len() };
        answer("206 Partial Content", &range, rest.len(), &rest[..sent])
    });
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("file");
    let bar = ProgressBar::hidden();
    download(&base, &to, &bar, QUICK).unwrap();
    assert_eq!(fs::read(&to).unwrap(), bytes);
    assert_eq!(bar.position(), 50_000);
    assert_eq!(asked.load(Ordering::SeqCst), 3);
}

#[test]
fn a_file_that_changed_meanwhile_is_taken_from_the_start() {
    let (base, _) = serve(|number, _| match number {
        0 => answer("200 OK", "ETag: \"v1\"\r\n", 1000, &[1; 600]),
        _ => answer("200 OK", "ETag: \"v2\"\r\n", 500, &[2; 500]),
    });
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("file");
    download(&base, &to, &ProgressBar::hidden(), QUICK).unwrap();
    assert_eq!(fs::read(&to).unwrap(), [2; 500]);
}

#[test]
fn a_connection_that_is_always_cut_ends_with_the_count_of_bytes() {
    let (base, asked) = serve(|_, _| answer("200 OK", "", 1000, &[1; 600]));
    let world = World::new();
    let text = from_server(&world, &base).unwrap_err().to_string();
    assert!(text.contains("600 B had come") && text.contains("3 times"), "{text}");
    // The first brought something new; then as many as patience allows, without.
    assert_eq!(asked.load(Ordering::SeqCst), 3);
    assert_eq!(world.names_in_cache(), ["2.13.0-cpu.lock"]);
}

#[test]
fn a_page_in_place_of_the_archive_is_shown() {
    let (base, _) = serve(|_, _| answer("200 OK", "", 26, b"<html>please log in</html>"));
    let text = from_server(&World::new(), &base).unwrap_err().to_string();
    assert!(text.contains("not a whole zip archive") && text.contains("<html>please log in"), "{text}");
}

#[test]
fn an_archive_of_another_version_is_refused() {
    let zip = archive("2.12.0+cpu");
    let (base, _) = serve(move |_, _| answer("200 OK", "", zip.len(), &zip));
    let text = from_server(&World::new(), &base).unwrap_err().to_string();
    assert!(text.contains("2.12.0"), "{text}");
}

#[test]
fn a_damaged_archive_is_noticed_by_its_checksum() {
    let mut zip = zipped([("libtorch/lib/libc10.so", &b"a library that will be damaged"[..])]);
    // Stored or deflated, the data follow the name.
    let at = zip.windows(9).position(|bytes| bytes == b"libc10.so").unwrap() + 9 + 4;
    zip[at] ^= 0x10;
    let (base, _) = serve(move |_, _| answer("200 OK", "", zip.len(), &zip));
    let text = from_server(&World::new(), &base).unwrap_err().to_string();
    assert!(text.contains("unpacking lib") || text.contains("unpacking libtorch/lib/libc10.so"), "{text}");
}

#[test]
fn an_archive_cannot_write_outside() {
    let folder = tempfile::tempdir().unwrap();
    let (file, to) = (folder.path().join("bad.zip"), folder.path().join("to"));
    fs::write(&file, zipped([("../outside", &b"x"[..])])).unwrap();
    let mut zip = unpack::open(&file).unwrap();
    let error = unpack::extract(&mut zip, &to, &ProgressBar::hidden(), |name| Some(name.to_owned())).unwrap_err();
    assert!(error.to_string().contains("leads out"), "{error}");
    assert!(!folder.path().join("outside").exists());
}

// The wheel.

fn version_py(version: &str, cuda: &str) -> String {
    format!("__version__ = '{version}'\ndebug = False\ncuda: Optional[str] = {cuda}\n")
}

#[test]
fn the_wheel_of_a_cuda_build_becomes_a_libtorch_for_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    let (torch, runtime) = (folder.path().join("torch-2.13.0-x.whl"), folder.path().join("nvidia.whl"));
    let version = version_py("2.13.0+cu130", "'13.0'");
    let mut members: Vec<(String, Vec<u8>)> = files("2.13.0")
        .into_iter()
        .filter(|(name, _)| name != "build-version")
        .map(|(name, bytes)| (format!("torch/{name}"), bytes))
        .collect();
    members.push(("torch/version.py".into(), version.into_bytes()));
    for name in
        ["torch/lib/libtorch_cuda.so", "torch/lib/libc10_cuda.so", "torch/__init__.py", "torch/lib/libgomp.so.1"]
    {
        members.push((name.into(), b"x".to_vec()));
    }
    fs::write(&torch, zipped(members.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())))).unwrap();
    fs::write(&runtime, zipped([("nvidia/cu13/lib/libcudart.so.13", &b"rt"[..]), ("nvidia/cu13/include/x.h", b"h")]))
        .unwrap();

    assert_eq!(companions(&torch).unwrap(), ["nvidia-cuda-runtime==13.0.*", "nvidia-cuda-cupti==13.0.*"]);
    let to = folder.path().join("libtorch");
    for wheel in [&torch, &runtime] {
        unpack_wheel(wheel, &to, &linux(), &ProgressBar::hidden()).unwrap();
    }
    let found = Folder::inspect(&to, &linux()).unwrap().require().unwrap();
    assert!(!found.cuda);
    let mut libraries: Vec<_> =
        fs::read_dir(to.join("lib")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    libraries.sort();
    assert_eq!(libraries, ["libc10.so", "libcudart.so.13", "libgomp.so.1", "libtorch.so", "libtorch_cpu.so"]);
    assert!(!to.join("__init__.py").exists());
}

#[test]
fn companions_follow_from_what_the_wheel_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("torch.whl");
    let of = |version: &str, cuda: &str| {
        fs::write(&path, zipped([("torch/version.py", version_py(version, cuda).as_bytes())])).unwrap();
        companions(&path)
    };
    assert!(of("2.13.0", "None").unwrap().is_empty());
    assert!(of("2.13.0+cpu", "None").unwrap().is_empty());
    assert_eq!(
        of("2.13.0+cu128", "'12.8'").unwrap(),
        ["nvidia-cuda-runtime-cu12==12.8.*", "nvidia-cuda-cupti-cu12==12.8.*"]
    );
    assert!(of("2.11.0", "None").unwrap_err().to_string().contains("2.11.0"));
}

#[test]
fn a_cut_wheel_is_no_wheel() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("torch.whl");
    let whole = zipped([("torch/version.py", version_py("2.13.0", "None").as_bytes())]);
    fs::write(&path, &whole[..whole.len() - 30]).unwrap();
    assert!(companions(&path).unwrap_err().to_string().contains("not a whole zip archive"));
}
