//! Headers of GGUF files: what is read, one test for each way they can be wrong, and what must never happen.

use std::path::{Path, PathBuf};

use lowmem::gguf::{Array, Format, GgufError, GgufHeader, Value, dequantise, read_split};
use proptest::prelude::*;

use crate::{
    gguf_bytes::{Builder, array, fuzz_seeds, key, mutate, string, strings, tensor},
    harness::{assert_passed, child, in_child},
};

fn parse(bytes: &[u8]) -> Result<GgufHeader, GgufError> {
    GgufHeader::parse(Path::new("model.gguf"), bytes.len() as u64, bytes)
}

fn refuse(bytes: &[u8], words: &[&str]) -> GgufError {
    let error = parse(bytes).unwrap_err();
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{text:?} lacks {word:?}");
    }
    error
}

/// Two keys, a matrix in blocks and a vector.
fn good() -> Builder {
    Builder::default()
        .key(key("general.architecture", 8, &string("llama")))
        .key(key("llama.block_count", 4, &7_u32.to_le_bytes()))
        .tensor(tensor("blk.0.attn_q.weight", &[64, 3], 2, 0))
        .tensor(tensor("output_norm.weight", &[5], 0, 128))
        .data(128 + 20)
}

#[test]
fn what_is_there_is_read() {
    for version in [2, 3] {
        let mut builder = good();
        builder.version = version;
        let header = parse(&builder.bytes()).unwrap();
        assert_eq!((header.version, header.alignment, header.data_offset % 32), (version, 32, 0));
        assert_eq!(header.metadata.require_str("general.architecture").unwrap(), "llama");
        assert_eq!(header.metadata.len(), 2);
        let [matrix, vector] = &header.tensors[..] else { panic!("{:?}", header.tensors) };
        assert_eq!((matrix.format, matrix.shape.as_slice(), matrix.bytes), (Format::Q4_0, &[3_i64, 64][..], 108));
        assert_eq!((matrix.offset, vector.offset), (header.data_offset, header.data_offset + 128));
        assert_eq!((vector.name.as_str(), vector.bytes), ("output_norm.weight", 20));
        assert_eq!(header.file_bytes, header.data_offset + 148);
    }
}

#[test]
fn every_type_of_value() {
    let integers: [(u32, Vec<u8>, Value); 8] = [
        (0, vec![9], Value::U8(9)),
        (1, vec![9], Value::I8(9)),
        (2, 9_u16.to_le_bytes().into(), Value::U16(9)),
        (3, 9_i16.to_le_bytes().into(), Value::I16(9)),
        (4, 9_u32.to_le_bytes().into(), Value::U32(9)),
        (5, 9_i32.to_le_bytes().into(), Value::I32(9)),
        (10, 9_u64.to_le_bytes().into(), Value::U64(9)),
        (11, 9_i64.to_le_bytes().into(), Value::I64(9)),
    ];
    for (kind, bytes, value) in integers {
        let list = array(kind, 3, &bytes.repeat(3));
        let file = Builder::default().key(key("a", kind, &bytes)).key(key("b", 9, &list)).bytes();
        let metadata = parse(&file).unwrap().metadata;
        assert_eq!(metadata.get("a"), Some(&value));
        assert_eq!(metadata.require_u64("a").unwrap(), 9);
        assert_eq!(metadata.require_f64("a").unwrap(), 9.0);
        assert_eq!(metadata.get_u64s("b").unwrap(), Some(vec![9; 3]));
        let third = metadata.get_array("b").unwrap().unwrap().get(2);
        assert_eq!(third, Some(value));
    }
    let file = Builder::default()
        .key(key("f32", 6, &0.1_f32.to_le_bytes()))
        .key(key("f64", 12, &0.1_f64.to_le_bytes()))
        .key(key("bool", 7, &[1]))
        .key(key("f32s", 9, &array(6, 2, &[0, 0, 128, 63, 0, 0, 0, 64])))
        .key(key("f64s", 9, &array(12, 1, &0.1_f64.to_le_bytes())))
        .key(key("bools", 9, &array(7, 3, &[1, 0, 1])))
        .key(key("arrays", 9, &array(9, 2, &[array(0, 1, &[5]), array(8, 1, &string("x"))].concat())))
        .bytes();
    let metadata = parse(&file).unwrap().metadata;
    assert_eq!(metadata.get_f64("f32").unwrap(), Some(f64::from(0.1_f32)));
    assert_eq!(metadata.get_f64("f64").unwrap(), Some(0.1));
    assert_eq!(metadata.get_bool("bool").unwrap(), Some(true));
    assert_eq!(metadata.get_f64s("f32s").unwrap(), Some(vec![1.0, 2.0]));
    assert_eq!(metadata.get_f64s("f64s").unwrap(), Some(vec![0.1]));
    assert_eq!(metadata.get_bools("bools").unwrap(), Some(vec![true, false, true]));
    let Some(Array::Arrays(arrays)) = metadata.get_array("arrays").unwrap() else { panic!("no arrays") };
    assert_eq!(arrays[0], Array::U8(vec![5]));
    assert_eq!(arrays[1].as_strings().unwrap().get(0), Some("x"));
}

#[test]
fn strings_are_looked_at_when_they_are_asked_for() {
    let list =
        [string("a"), string(""), [2_u64.to_le_bytes().to_vec(), vec![0xff, b'!']].concat(), string("日本")].concat();
    let metadata = parse(&Builder::default().key(key("t", 9, &array(8, 4, &list))).bytes()).unwrap().metadata;
    let strings = metadata.get_strings("t").unwrap().unwrap();
    let texts: Vec<_> = (0..5).map(|index| strings.get(index)).collect();
    assert_eq!(texts, [Some("a"), Some(""), None, Some("日本"), None]);
    assert_eq!((strings.len(), strings.bytes(2)), (4, Some(&[0xff, b'!'][..])));
    assert_eq!(strings.iter().map(<[u8]>::len).collect::<Vec<_>>(), [1, 0, 2, 6]);
}

#[test]
fn getters_name_key_expected_and_found() {
    let metadata = parse(&good().key(key("n", 5, &(-3_i32).to_le_bytes())).bytes()).unwrap().metadata;
    let says = |error: GgufError, words: [&str; 3]| {
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert!(text.starts_with("model.gguf: "), "{text}");
    };
    says(metadata.get_u64("n").unwrap_err(), ["key n", "not negative", "i32 -3"]);
    says(metadata.get_str("llama.block_count").unwrap_err(), ["llama.block_count", "a string", "u32 7"]);
    says(metadata.get_f64("general.architecture").unwrap_err(), ["architecture", "a number", "\"llama\""]);
    says(metadata.get_strings("n").unwrap_err(), ["key n", "array of strings", "i32"]);
    says(metadata.require_u64("llama.x").unwrap_err(), ["llama.x", "missing", "integer"]);
    assert_eq!(metadata.get_u64("llama.x").unwrap(), None);
}

#[test]
fn not_gguf() {
    assert!(matches!(refuse(b"", &["model.gguf"]), GgufError::Magic { .. }));
    assert!(matches!(refuse(b"GG", &["\"GG\""]), GgufError::Magic { .. }));
    assert!(matches!(refuse(b"PK\x03\x04....", &["PK"]), GgufError::Magic { .. }));
    let mut old = good();
    old.version = 1;
    assert!(matches!(refuse(&old.bytes(), &["version 1", "2 and 3"]), GgufError::Version { found: 1, .. }));
    old.version = 3_u32.swap_bytes();
    assert!(matches!(refuse(&old.bytes(), &["big-endian"]), GgufError::BigEndian { .. }));
}

#[test]
fn truncated_anywhere() {
    let bytes = good().bytes();
    let header = parse(&bytes).unwrap();
    for length in 4..bytes.len() {
        let error = parse(&bytes[..length]).unwrap_err();
        let in_data = length as u64 >= header.data_offset;
        match error {
            GgufError::Truncated { expected, found, .. } => assert!(!in_data && found < expected, "{length}"),
            GgufError::OutOfRange { end, file_bytes, .. } => assert!(end > file_bytes, "{length}"),
            other => panic!("{length}: {other}"),
        }
    }
}

#[test]
fn counts_that_cannot_be() {
    let with_counts = |tensors: u64, keys: u64| {
        [b"GGUF".to_vec(), 3_u32.to_le_bytes().into(), tensors.to_le_bytes().into(), keys.to_le_bytes().into()].concat()
    };
    assert!(matches!(refuse(&with_counts(u64::MAX, 0), &["tensors"]), GgufError::Limit { .. }));
    assert!(matches!(refuse(&with_counts(0, 1 << 40), &["keys"]), GgufError::Limit { .. }));
    refuse(&with_counts(9, 0), &["tensor number 0", "8 more bytes", "only 0"]);
    for kind in 0..13 {
        let huge = Builder::default().key(key("k", 9, &array(kind, 1 << 61, &[1; 64]))).bytes();
        refuse(&huge, &["key k"]);
    }
    let name = [(u64::MAX).to_le_bytes().to_vec(), vec![b'a'; 9]].concat();
    refuse(&Builder::default().key(name).bytes(), &["key number 0", "bytes of name"]);
    refuse(&Builder::default().key(key("k", 8, &(1_u64 << 40).to_le_bytes())).bytes(), &["key k", "needs"]);
    refuse(&Builder::default().key(key("k", 9, &array(8, 1, &(1_u64 << 40).to_le_bytes()))).bytes(), &["key k"]);
    let deep = (0..6).fold(array(0, 0, &[]), |inner, _| array(9, 1, &inner));
    refuse(&Builder::default().key(key("k", 9, &deep)).bytes(), &["key k", "arrays in one another"]);
}

#[test]
fn keys_that_are_wrong() {
    let twice = good().key(key("llama.block_count", 4, &[0; 4])).bytes();
    assert!(matches!(refuse(&twice, &["llama.block_count", "twice"]), GgufError::DuplicateKey { .. }));
    refuse(&good().key(key("k", 13, &[0; 8])).bytes(), &["key k", "13"]);
    refuse(&good().key(key("k", 9, &array(99, 1, &[0]))).bytes(), &["key k", "99"]);
    refuse(&good().key(key("k", 7, &[2])).bytes(), &["key k", "not 2"]);
    refuse(&good().key(key("k", 9, &array(7, 2, &[1, 7]))).bytes(), &["key k", "not 7"]);
    let not_text = [2_u64.to_le_bytes().to_vec(), vec![0xff, 0xfe]].concat();
    assert!(matches!(refuse(&good().key(key("k", 8, &not_text)).bytes(), &["key k"]), GgufError::NotUtf8 { .. }));
    let unnamed = [not_text, 4_u32.to_le_bytes().to_vec(), vec![0; 4]].concat();
    refuse(&good().key(unnamed).bytes(), &["key number 2", "not UTF-8"]);
}

#[test]
fn alignments() {
    for (alignment, fine) in [(1_u32, true), (8, true), (64, true), (0, false), (33, false), (u32::MAX, false)] {
        let mut builder = good().key(key("general.alignment", 4, &alignment.to_le_bytes()));
        builder.alignment = if fine { alignment as usize } else { 32 };
        match parse(&builder.bytes()) {
            Ok(header) => assert!(fine && header.data_offset.is_multiple_of(u64::from(alignment)), "{alignment}"),
            Err(GgufError::Alignment { found, .. }) => assert!(!fine && found == u64::from(alignment)),
            Err(other) => panic!("{alignment}: {other}"),
        }
    }
    refuse(&good().key(key("general.alignment", 8, &string("8"))).bytes(), &["general.alignment", "integer"]);
}

fn with_tensor(dimensions: &[u64], format: u32, offset: u64) -> Vec<u8> {
    Builder::default().tensor(tensor("t", dimensions, format, offset)).data(4096).bytes()
}

#[test]
fn tensors_that_are_wrong() {
    refuse(&with_tensor(&[1; 5], 0, 0), &["tensor t", "5 dimensions", "4"]);
    refuse(&with_tensor(&[33, 2], 2, 0), &["tensor t", "a multiple of 32", "found 33"]);
    refuse(&with_tensor(&[2, 128], 12, 0), &["tensor t", "a multiple of 256", "Q4_K"]);
    refuse(&with_tensor(&[u64::MAX, u64::MAX], 0, 0), &["tensor t", "too large"]);
    refuse(&with_tensor(&[1 << 62], 0, 0), &["tensor t", "too large"]);
    refuse(&with_tensor(&[1 << 63, 0], 0, 0), &["tensor t", "too large"]);
    refuse(&with_tensor(&[4], 16, 0), &["tensor t", "IQ2_XXS", "Q4_K"]);
    refuse(&with_tensor(&[4], 1234, 0), &["tensor t", "type 1234"]);
    refuse(&with_tensor(&[4], 0, 8), &["tensor t", "aligned", "32", "8"]);
    refuse(&with_tensor(&[1025], 0, 0), &["tensor t", "truncated"]);
    refuse(&with_tensor(&[4], 0, u64::MAX - 31), &["tensor t", "ends at"]);
    refuse(&good().tensor(tensor("output_norm.weight", &[1], 0, 0)).bytes(), &["output_norm.weight", "again"]);
    let overlapping = good().tensor(tensor("u", &[8], 0, 96)).bytes();
    let error = refuse(&overlapping, &["blk.0.attn_q.weight", "overlap"]);
    assert!(matches!(error, GgufError::Overlap { ref second, .. } if second == "u"), "{error}");
    // No dimension is one element, a dimension of 0 none; neither is an error.
    assert_eq!(parse(&with_tensor(&[], 0, 0)).unwrap().tensors[0].bytes, 4);
    assert_eq!(parse(&with_tensor(&[0, 3], 0, 0)).unwrap().tensors[0].bytes, 0);
}

#[test]
fn missing_file() {
    let error = GgufHeader::read(Path::new("/nowhere/model.gguf")).unwrap_err();
    assert!(matches!(&error, GgufError::Io { file, .. } if file.ends_with("model.gguf")), "{error}");
    let error = lowmem::Error::from(error);
    assert!(error.to_string().starts_with("/nowhere/model.gguf"), "{error}");
}

fn shard(number: u16, count: u16, total: i32, name: &str) -> Vec<u8> {
    Builder::default()
        .key(key("split.no", 2, &number.to_le_bytes()))
        .key(key("split.count", 2, &count.to_le_bytes()))
        .key(key("split.tensors.count", 5, &total.to_le_bytes()))
        .tensor(tensor(name, &[4], 0, 0))
        .data(16)
        .bytes()
}

fn split(shards: &[(&str, Vec<u8>)]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in shards {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    let first = folder.path().join(shards[0].0);
    (folder, first)
}

#[test]
fn split_models() {
    let one = ("m-00001-of-00002.gguf", shard(0, 2, 2, "a"));
    let two = ("m-00002-of-00002.gguf", shard(1, 2, 2, "b"));
    let (folder, first) = split(&[one.clone(), two.clone()]);
    for path in [first, folder.path().join(two.0)] {
        let headers = read_split(&path).unwrap();
        let names: Vec<_> = headers.iter().map(|header| header.tensors[0].name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
    }

    let refuse = |shards: &[(&str, Vec<u8>)], words: &[&str]| {
        let text = read_split(&split(shards).1).unwrap_err().to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    };
    refuse(std::slice::from_ref(&one), &["m-00002-of-00002.gguf is missing", "2 files"]);
    refuse(&[one.clone(), two.clone(), ("m-00003-of-00002.gguf", vec![])], &["too many", "m-00003-of-00002.gguf"]);
    refuse(&[("m.gguf", shard(0, 2, 2, "a"))], &["m.gguf", "NAME-00001-of-00002.gguf"]);
    refuse(&[one.clone(), ("m-00002-of-00002.gguf", shard(0, 2, 2, "b"))], &["m-00002", "split.no", "expected 1"]);
    refuse(&[one.clone(), ("m-00002-of-00002.gguf", shard(1, 3, 2, "b"))], &["m-00002", "split.count", "expected 2"]);
    refuse(&[one.clone(), ("m-00002-of-00002.gguf", shard(1, 2, 2, "a"))], &["tensor a", "m-00001", "m-00002"]);
    refuse(&[one, ("m-00002-of-00002.gguf", shard(1, 2, 3, "b"))], &["m-00002", "split.tensors.count", "found 2"]);

    let (_folder, alone) = split(&[("m.gguf", good().bytes())]);
    assert_eq!(read_split(&alone).unwrap().len(), 1);
}

/// What must hold of any bytes: no panic, and a header that is accepted can be used without a check.
fn never_panics(bytes: &[u8]) {
    let Ok(header) = parse(bytes) else { return };
    for tensor in &header.tensors {
        let data = &bytes[tensor.offset as usize..][..tensor.bytes as usize];
        let elements = tensor.shape.iter().product::<i64>() as usize;
        dequantise(tensor.format, data, &mut vec![0.0; elements]).unwrap();
    }
    for (key, value) in header.metadata.iter() {
        let _ = (value.describe(), header.metadata.get_u64s(key), header.metadata.get_f64s(key));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        never_panics(&bytes);
        never_panics(&[b"GGUF\x03\0\0\0".to_vec(), bytes].concat());
    }

    #[test]
    fn changed_bytes(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in 0_usize..40) {
        let mut bytes = good().key(key("t", 9, &strings(["a", "b"]))).bytes();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(bytes.len() - cut);
        never_panics(&bytes);
    }

    #[test]
    fn entries(dimensions in proptest::collection::vec(any::<u64>(), 0..5), small in proptest::collection::vec(0_u64..70, 0..4),
               format in 0_u32..45, offset in any::<u64>(), near in 0_u64..200) {
        never_panics(&with_tensor(&dimensions, format, offset));
        never_panics(&with_tensor(&small, format, near * 32));
    }

    #[test]
    fn mutated_models(seed in any::<u64>()) {
        let seeds = fuzz_seeds();
        never_panics(&mutate(&seeds, seed));
    }
}

/// Peak memory of this process in bytes.
#[cfg(target_os = "linux")]
fn peak() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

/// A file of holes is as large as anything claims to be, and costs its maker nothing.
#[cfg(target_os = "linux")]
#[test]
fn claims_cost_no_memory() {
    let test = "gguf_files::child_claims_cost_no_memory";
    assert_passed(test, &in_child(test, &[]));
}

#[cfg(target_os = "linux")]
child!(child_claims_cost_no_memory, |_| {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let before = peak();
    for (kind, count) in (0..13).flat_map(|kind| [1 << 20, 1 << 28, 1 << 40, 1 << 62].map(|count| (kind, count))) {
        for value in [array(kind, count, &[0; 8]), array(9, count, &array(kind, count, &[]))] {
            let bytes = Builder::default().key(key("k", 9, &value)).bytes();
            assert!(parse(&bytes).is_err());
            std::fs::write(&path, &bytes).unwrap();
            std::fs::File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
            // Where the claim is true and within the header's limit, it is read.
            if count >= 1 << 28 {
                assert!(GgufHeader::read(&path).is_err(), "{kind} {count}");
            }
        }
    }
    let used = peak() - before;
    assert!(used < 64 << 20, "{} MiB", used >> 20);
});

/// `LOWMEM_FUZZ_SECONDS=1200 cargo test --release -p lowmem --test suite long_fuzz -- --ignored --nocapture`
#[cfg(target_os = "linux")]
#[test]
#[ignore = "runs as long as LOWMEM_FUZZ_SECONDS says"]
fn long_fuzz() {
    let seconds = std::env::var("LOWMEM_FUZZ_SECONDS").map_or(10, |text| text.parse().unwrap());
    let start = std::time::Instant::now();
    let seeds = fuzz_seeds();
    let origin = std::env::var("LOWMEM_FUZZ_SEED").map_or(0, |text| text.parse().unwrap());
    let (before, mut count, mut accepted) = (peak(), 0_u64, 0_u64);
    while start.elapsed().as_secs() < seconds {
        for _ in 0..100 {
            let bytes = mutate(&seeds, origin + count);
            let run = std::panic::catch_unwind(|| never_panics(&bytes));
            assert!(run.is_ok(), "the number {} of a mutation panics", origin + count);
            accepted += u64::from(parse(&bytes).is_ok());
            count += 1;
        }
    }
    let used = peak() - before;
    println!("{count} mutated files in {seconds} s, {accepted} accepted, {} KiB more memory at most", used >> 10);
    assert!(accepted > 0 && accepted < count);
    assert!(used < 64 << 20, "{} MiB", used >> 20);
}

/// `cargo test --release -p lowmem --test suite gguf_opening_speed -- --ignored --nocapture`
#[test]
#[ignore = "prints times"]
fn gguf_opening_speed() {
    let texts: Vec<String> = (0..262_144).map(|token| format!("token{token}")).collect();
    let merges = texts.iter().map(String::as_str).chain(texts.iter().map(String::as_str));
    let file = Builder::default()
        .key(key("tokenizer.ggml.tokens", 9, &strings(texts.iter().map(String::as_str))))
        .key(key("tokenizer.ggml.merges", 9, &strings(merges)))
        .key(key("tokenizer.ggml.scores", 9, &array(6, 262_144, &vec![0; 4 << 18])))
        .key(key("tokenizer.ggml.token_type", 9, &array(5, 262_144, &vec![0; 4 << 18])));
    let (_folder, path) = split(&[("m.gguf", file.bytes())]);
    for weights in [0_u64, 1 << 34] {
        let header = GgufHeader::read(&path).unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_len(header.data_offset + weights).unwrap();
        let times = (0..9).map(|_| {
            let start = std::time::Instant::now();
            GgufHeader::read(&path).unwrap();
            start.elapsed().as_secs_f64() * 1e3
        });
        let least = times.fold(f64::INFINITY, f64::min);
        println!("{} MB of header, {} GB of weights: {least:.1} ms", header.data_offset >> 20, weights >> 30);
    }
}
