//! Sharded checkpoints and the ways their index file can be wrong.

use std::{fs, path::Path};

use lowmem::{Checkpoint, Error, Residency, save_safetensors};
use tch::Tensor;

use crate::harness::{assert_same, numbers, place_all};

fn write_index(folder: &Path, entries: &[(&str, &str)]) {
    let map: Vec<String> = entries.iter().map(|(tensor, shard)| format!("{tensor:?}:{shard:?}")).collect();
    let text = format!("{{\"metadata\":{{}},\"weight_map\":{{{}}}}}", map.join(","));
    fs::write(folder.join("model.safetensors.index.json"), text).unwrap();
}

fn two_shards() -> (tempfile::TempDir, Vec<(String, Tensor)>) {
    let folder = tempfile::tempdir().unwrap();
    let tensors: Vec<_> = ["a", "b", "c"].iter().map(|name| ((*name).to_owned(), numbers(&[3, 4], 5))).collect();
    let clone = |range: &[(String, Tensor)]| {
        range.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect::<Vec<_>>()
    };
    save_safetensors(&folder.path().join("one.safetensors"), &clone(&tensors[..2])).unwrap();
    save_safetensors(&folder.path().join("two.safetensors"), &clone(&tensors[2..])).unwrap();
    write_index(folder.path(), &[("a", "one.safetensors"), ("b", "one.safetensors"), ("c", "two.safetensors")]);
    (folder, tensors)
}

#[test]
fn shards_are_one_checkpoint() {
    let (folder, tensors) = two_shards();
    assert_same(&place_all(folder.path(), Residency::Mapped), &tensors);
    assert_same(&place_all(&folder.path().join("model.safetensors.index.json"), Residency::Streamed), &tensors);
}

#[test]
fn shard_outside_the_folder() {
    for shard in ["../one.safetensors", "/etc/passwd", "sub/one.safetensors", "..", "", "."] {
        let (folder, _) = two_shards();
        write_index(folder.path(), &[("a", shard)]);
        let error = Checkpoint::open(folder.path()).unwrap_err();
        let Error::ShardOutside { ref tensor, shard: ref found, .. } = error else { panic!("{shard:?}: {error}") };
        assert_eq!((tensor.as_str(), found.as_str()), ("a", shard));
    }
}

#[test]
fn shard_that_is_missing() {
    let (folder, _) = two_shards();
    fs::remove_file(folder.path().join("two.safetensors")).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert!(matches!(error, Error::ShardMissing { ref tensor, .. } if tensor == "c"), "{error}");
}

#[test]
fn tensor_that_its_shard_does_not_hold() {
    let (folder, _) = two_shards();
    write_index(folder.path(), &[("a", "one.safetensors"), ("nowhere", "two.safetensors")]);
    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert!(matches!(error, Error::NotInShard { ref tensor, .. } if tensor == "nowhere"), "{error}");
    // In a shard, but not in the one that is named.
    write_index(folder.path(), &[("a", "two.safetensors"), ("b", "one.safetensors")]);
    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert!(matches!(error, Error::NotInShard { ref tensor, .. } if tensor == "a"), "{error}");
}

#[test]
fn tensor_in_two_shards() {
    let (folder, tensors) = two_shards();
    let again = vec![("a".to_owned(), tensors[0].1.shallow_clone()), ("c".to_owned(), tensors[2].1.shallow_clone())];
    save_safetensors(&folder.path().join("two.safetensors"), &again).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err();
    let Error::Duplicate { ref tensor, ref first, ref second } = error else { panic!("{error}") };
    assert_eq!(tensor, "a");
    assert!(first.ends_with("one.safetensors") && second.ends_with("two.safetensors"), "{error}");
}

#[test]
fn index_that_is_not_json() {
    let (folder, _) = two_shards();
    fs::write(folder.path().join("model.safetensors.index.json"), "{").unwrap();
    assert!(matches!(Checkpoint::open(folder.path()), Err(Error::Json { .. })));
    fs::write(folder.path().join("model.safetensors.index.json"), "{\"weights\":{}}").unwrap();
    assert!(matches!(Checkpoint::open(folder.path()), Err(Error::Json { .. })));
}

#[test]
fn shard_that_is_truncated_names_shard_and_tensor() {
    let (folder, _) = two_shards();
    let path = folder.path().join("two.safetensors");
    let bytes = fs::metadata(&path).unwrap().len();
    fs::File::options().write(true).open(&path).unwrap().set_len(bytes - 4).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err();
    let Error::OutOfRange { ref file, ref tensor, .. } = error else { panic!("{error}") };
    assert!(file.ends_with("two.safetensors") && tensor == "c", "{error}");
}
