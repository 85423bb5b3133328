//! Files that are written: whole or not at all, and with the mode that any new file has.

#![cfg(unix)]

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use crate::harness::{assert_passed, child, in_child_under, numbers};

/// Every file below `folder` with its mode.
fn modes(folder: &Path) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            found.extend(modes(&path));
        } else if metadata.is_file() {
            found.push((path.display().to_string(), metadata.permissions().mode() & 0o777));
        }
    }
    found
}

child!(modes_child, |variables: &dyn Fn(&str) -> String| {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let tensors = [("a".to_owned(), numbers(&[3], 1))];
    // A file that was there is replaced, not changed.
    fs::write(path("old.safetensors"), "old").unwrap();
    fs::set_permissions(path("old.safetensors"), fs::Permissions::from_mode(0o400)).unwrap();
    for name in ["new.safetensors", "old.safetensors"] {
        lowmem::save_safetensors(&path(name), &tensors).unwrap();
    }
    lowmem::save_bin(&path("new.bin"), &tensors).unwrap();
    lowmem::write_file(&path("new.json"), b"{}").unwrap();
    #[cfg(feature = "hub")]
    {
        let options = lowmem::HubOptions::default().endpoint(variables("TEST_ENDPOINT")).cache(path("cache"));
        let model = lowmem::Source::Hub("org/model".into());
        lowmem::Checkpoint::find(&model, &options).unwrap().ensure(["a"]).unwrap();
    }
    fs::File::create(path("plain")).unwrap();
    let expected = modes(folder.path()).into_iter().find(|(path, _)| path.ends_with("/plain")).unwrap().1;
    assert_eq!(expected, 0o666 & !u32::from_str_radix(&variables("TEST_UMASK"), 8).unwrap());
    let found = modes(folder.path());
    assert!(found.len() >= if cfg!(feature = "hub") { 9 } else { 5 }, "{found:?}");
    for (path, mode) in found {
        assert_eq!(mode, expected, "{path}: {mode:o}, expected {expected:o}");
    }
});

#[test]
fn files_have_the_mode_that_the_umask_says() {
    #[cfg(feature = "hub")]
    let hub = crate::hub_files::single();
    #[cfg(feature = "hub")]
    let endpoint = hub.endpoint.as_str();
    #[cfg(not(feature = "hub"))]
    let endpoint = "";
    for umask in ["000", "022", "027", "077"] {
        let command = ["sh", "-c", "umask $TEST_UMASK; exec \"$0\" \"$@\""];
        let variables = [("TEST_UMASK", umask), ("TEST_ENDPOINT", endpoint)];
        let test = "written_files::modes_child";
        assert_passed(test, &in_child_under(&command, test, &variables));
    }
}

#[test]
fn what_cannot_be_written_leaves_what_was_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    lowmem::write_file(&path, b"one").unwrap();
    lowmem::write_file(&path, b"two").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"two");
    fs::create_dir(folder.path().join("folder")).unwrap();
    for bad in ["folder", "absent/file"] {
        let error = lowmem::write_file(&folder.path().join(bad), b"three").unwrap_err();
        assert!(matches!(&error, lowmem::Error::Io { path, .. } if path.ends_with(bad)), "{error}");
    }
    let mut names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["file", "folder"]);
}
