//! Every format of numbers against gguf-py, bit for bit.

use std::{
    fs,
    path::{Path, PathBuf},
};

use lowmem::gguf::{Format, GgufError, GgufHeader, dequantise};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

/// The blocks of a format, and what gguf-py reads in them.
fn blocks(format: Format) -> (Vec<u8>, Vec<f32>) {
    let content = fs::read(golden("gguf_formats").join(format!("{format}.bin"))).unwrap();
    let (count, rest) = content.split_first_chunk().unwrap();
    let (bytes, values) = rest.split_at(u32::from_le_bytes(*count) as usize * format.bytes_per_block() as usize);
    (bytes.to_owned(), values.as_chunks().0.iter().map(|&value| f32::from_le_bytes(value)).collect())
}

/// Equal bits; of NaNs only that they are ones: a processor chooses their bits.
fn assert_same(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
        assert!(same, "{what}, element {at}: {found:e}, gguf-py has {expected:e}");
    }
}

#[test]
fn every_format_is_that_of_gguf_py() {
    for format in Format::all() {
        let (bytes, expected) = blocks(format);
        assert!(expected.len() > 100, "{format}");
        let mut found = vec![f32::NAN; expected.len()];
        dequantise(format, &bytes, &mut found).unwrap();
        assert_same(format.name(), &found, &expected);
    }
}

#[test]
fn bytes_and_elements_must_go_together() {
    let mut out = vec![0.0; 64];
    let error = dequantise(Format::Q4_0, &[0; 35], &mut out).unwrap_err();
    let text = "Q4_0: 64 elements need 36 bytes, there are 35";
    assert_eq!(error.to_string(), text);
    let error = dequantise(Format::Q4_0, &[0; 18], &mut out[..31]).unwrap_err();
    assert!(matches!(error, GgufError::Length { elements: 31, found: 18, .. }), "{error}");
    assert!(error.to_string().contains("whole blocks of 32"), "{error}");
    dequantise(Format::Q6_K, &[], &mut []).unwrap();
}

#[test]
fn numbers_and_names_of_formats() {
    for format in Format::all() {
        assert_eq!(Format::from_number(format.number()), Ok(format));
        assert_eq!(
            format.is_quantised(),
            !format.name().starts_with(['F', 'B']) && format.name().contains('_') || format.name() == "MXFP4"
        );
    }
    assert_eq!(Format::from_number(16), Err("IQ2_XXS".to_owned()));
    assert_eq!(Format::from_number(77), Err("type 77".to_owned()));
    assert_eq!(Format::Q4_K.bytes(512), Some(288));
    assert_eq!(Format::Q4_K.bytes(511), None);
    assert_eq!(Format::F64.bytes(u64::MAX), None);
}

fn tensors(path: &Path) -> Vec<(String, Vec<i64>, Vec<f32>)> {
    let header = GgufHeader::read(path).unwrap();
    let content = fs::read(path).unwrap();
    let values = |tensor: &lowmem::gguf::GgufTensor| {
        let bytes = &content[tensor.offset as usize..][..tensor.bytes as usize];
        let mut values = vec![f32::NAN; tensor.shape.iter().product::<i64>() as usize];
        dequantise(tensor.format, bytes, &mut values).unwrap();
        (tensor.name.clone(), tensor.shape.clone(), values)
    };
    header.tensors.iter().map(values).collect()
}

/// Files that gguf-py wrote: the quantised one means what the other holds.
#[test]
fn quantised_models_mean_the_plain_ones() {
    let mut models = 0;
    for entry in fs::read_dir(golden("gguf_models")).unwrap() {
        let folder = entry.unwrap().path();
        let mixed = tensors(&folder.join("mixed.gguf"));
        if !folder.join("f32.gguf").exists() {
            continue;
        }
        for ((name, shape, values), (plain_name, plain_shape, plain)) in
            mixed.iter().zip(tensors(&folder.join("f32.gguf")))
        {
            assert_eq!((name, shape), (&plain_name, &plain_shape));
            assert_same(&format!("{} {name}", folder.display()), values, &plain);
        }
        models += 1;
    }
    assert_eq!(models, 15);
}

/// `cargo test --release -p lowmem --test suite gguf_speed -- --ignored --nocapture`: gigabytes a second of what is written by one
/// thread, beside a copy of as many bytes; in the processor's cache, where only instructions count, and in memory.
#[test]
#[ignore = "prints times"]
fn gguf_speed() {
    for (elements, times) in [(1 << 15, 400), (1 << 25, 7)] {
        speed(elements, times);
    }
}

/// The least seconds of so many runs.
fn best(times: usize, mut run: impl FnMut()) -> f64 {
    let time = |_| {
        let start = std::time::Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    (0..times).map(time).fold(f64::INFINITY, f64::min)
}

fn speed(elements: usize, times: usize) {
    let from = vec![1.0_f32; elements];
    let mut found = vec![0.0_f32; elements];
    let copied = best(times, || found.copy_from_slice(&from));
    println!("{elements} elements: copy {:.1} GB/s", 4e-9 * elements as f64 / copied);
    for format in Format::all() {
        let (bytes, values) = blocks(format);
        // NaNs and denormals would be timed too.
        let usual: Vec<u8> = bytes
            .chunks(format.bytes_per_block() as usize)
            .zip(values.chunks(format.elements_per_block() as usize))
            .filter(|(_, values)| values.iter().all(|value| value.is_normal() || *value == 0.0))
            .flat_map(|(block, _)| block)
            .copied()
            .collect();
        let bytes: Vec<u8> = usual.into_iter().cycle().take(format.bytes(elements as u64).unwrap() as usize).collect();
        let seconds = best(times, || dequantise(format, &bytes, &mut found).unwrap());
        println!("  {format:7} {:5.1}   at {:.2} of a copy", 4e-9 * elements as f64 / seconds, copied / seconds);
    }
}
