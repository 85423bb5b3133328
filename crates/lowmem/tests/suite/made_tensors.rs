//! Tensors that are not simply there: slices of one that holds many, and numbers of few bits.

use std::path::Path;

use lowmem::{
    Checkpoint, Dtype, Error, LoadOptions, PartRequest, Parts, Residency, TensorRequest, save_bin, save_safetensors,
};
use tch::{Device, Kind, Tensor};

use crate::harness::numbers;

const BOTH: [Residency; 2] = [Residency::Resident, Residency::Streamed];

fn options(residency: Residency, dtype: Dtype) -> LoadOptions {
    LoadOptions::default().residency(residency).dtype(dtype)
}

/// Parts of one tensor each.
fn parts(path: &Path, requests: Vec<TensorRequest>, options: &LoadOptions) -> lowmem::Result<Parts> {
    let part = |request: TensorRequest| PartRequest { label: request.name.clone(), tensors: vec![request] };
    Parts::new(&Checkpoint::open(path)?, requests.into_iter().map(part).collect(), options)
}

fn refused(result: lowmem::Result<Parts>) -> Error {
    result.err().expect("this request is wrong")
}

#[test]
fn a_slice_is_read_without_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let experts = numbers(&[5, 3, 7], 1);
    // Stored [expert, out, in] and seen [expert, in, out]: a .bin file can say so.
    let turned = numbers(&[5, 7, 3], 2).transpose(1, 2);
    let tensors = [("experts".to_owned(), experts.shallow_clone()), ("turned".to_owned(), turned.shallow_clone())];
    let (safetensors, bin) = (folder.path().join("model.safetensors"), folder.path().join("pytorch_model.bin"));
    let contiguous = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.contiguous())).collect::<Vec<_>>();
    save_safetensors(&safetensors, &contiguous).unwrap();
    save_bin(&bin, &tensors).unwrap();
    for path in [&safetensors, &bin] {
        for residency in [Residency::Mapped, Residency::Resident, Residency::Streamed] {
            let requests = vec![
                TensorRequest::slice_of("experts", 3, 5, [3, 7]),
                TensorRequest::slice_of("turned", 4, 5, [3, 7]),
                TensorRequest::slice_of("experts", 0, 5, [3, 7]),
            ];
            let parts = parts(path, requests, &options(residency, Dtype::F32)).unwrap();
            let get = |part| parts.get(part, None).unwrap().remove(0);
            assert!(get(0).equal(&experts.get(3)), "{residency} {path:?}");
            assert_eq!(parts.report().bytes_read, 3 * 7 * 4, "{residency} {path:?}");
            assert!(get(1).equal(&turned.get(4)), "{residency} {path:?}");
            assert!(get(2).equal(&experts.get(0)), "{residency} {path:?}");
            assert_eq!(parts.names(0).unwrap(), ["experts[3]"]);
        }
    }
    for (request, expected) in [
        (TensorRequest::slice_of("experts", 3, 4, [3, 7]), [4, 3, 7]),
        (TensorRequest::slice_of("experts", 3, 5, [7, 3]), [5, 7, 3]),
    ] {
        let error = refused(parts(&safetensors, vec![request], &LoadOptions::default()));
        let Error::Misshapen { expected: named, found, .. } = &error else { panic!("{error}") };
        assert_eq!((named.as_slice(), found.as_slice()), (&expected[..], &[5, 3, 7][..]));
    }
    let outside = TensorRequest::slice_of("experts", 5, 5, [3, 7]);
    assert!(matches!(refused(parts(&safetensors, vec![outside], &LoadOptions::default())), Error::Misshapen { .. }));
}

/// Numbers of four bits and their scales, `[outer.., groups, 16]` and `[outer.., groups]`, and what they mean.
fn packed(outer: &[i64], groups: i64) -> (Tensor, Tensor, Tensor) {
    let shape = |last: &[i64]| [outer, last].concat();
    let bytes = (numbers(&shape(&[groups, 16]), 3) * 255.0).to_kind(Kind::Uint8);
    let scales = (numbers(&shape(&[groups]), 4) * 40.0 + 110.0).to_kind(Kind::Uint8);
    let values = [0.0_f32, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let table: Vec<f32> = values.iter().copied().chain(values.map(|value| -value)).collect();
    let numbers = bytes.to_kind(Kind::Int64);
    let low = numbers.bitwise_and_tensor(&Tensor::from(15_i64));
    let pairs = Tensor::stack(&[&low, &numbers.divide_scalar_mode(16, "floor")], -1);
    let values = Tensor::from_slice(&table).take(&pairs.flatten(-2, -1));
    let factors = Tensor::from(2_f32).pow(&(scales.to_kind(Kind::Float) - 127.0)).unsqueeze(-1);
    // Stored [out, in], seen [in, out].
    let expected = (values * factors).flatten(-2, -1).transpose(-2, -1);
    (bytes, scales, expected)
}

#[test]
fn numbers_of_four_bits_are_decoded_whole_and_slice_by_slice() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    // More than one thread's share.
    let (blocks, scales, expected) = packed(&[3, 1000], 10);
    let norm = numbers(&[320], 5).to_kind(Kind::BFloat16);
    let tensors =
        [("w_blocks".to_owned(), blocks), ("norm".to_owned(), norm.shallow_clone()), ("w_scales".to_owned(), scales)];
    save_safetensors(&path, &tensors).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.index().tensors.keys().collect::<Vec<_>>(), ["norm", "w"]);
    let on_disk = 3 * 1000 * 10 * 17;
    assert_eq!(checkpoint.index().bytes(), on_disk + 320 * 2);
    for residency in BOTH {
        for (dtype, kind) in [(Dtype::F32, Kind::Float), (Dtype::Bf16, Kind::BFloat16)] {
            let requests = vec![
                TensorRequest::new("w", [3, 320, 1000]),
                TensorRequest::slice_of("w", 2, 3, [320, 1000]),
                TensorRequest::new("norm", [320]),
            ];
            let parts = parts(&path, requests, &options(residency, dtype)).unwrap();
            let slice = parts.get(1, Some(0)).unwrap().remove(0);
            assert_eq!(parts.report().bytes_read, on_disk / 3);
            // Every number of this format is a bf16.
            assert!(slice.equal(&expected.get(2).to_kind(kind)), "{residency} {dtype}");
            let whole = parts.get(0, None).unwrap().remove(0);
            assert!(whole.equal(&expected.to_kind(kind)), "{residency} {dtype}");
            assert!(parts.get(2, None).unwrap()[0].equal(&norm.to_kind(kind)));
            let rows = parts.rows(1, 0, &Tensor::from_slice(&[7_i64, 0])).unwrap();
            assert!(rows.equal(&expected.get(2).index_select(0, &Tensor::from_slice(&[7_i64, 0])).to_kind(kind)));
        }
    }
    let auto = parts(&path, vec![TensorRequest::new("w", [3, 320, 1000])], &LoadOptions::default()).unwrap();
    assert_eq!((auto.residency(), auto.dtype()), (Residency::Resident, Dtype::Bf16));
    assert!(auto.report().reason.contains("MXFP4"), "{}", auto.report().reason);
    let mapped = options(Residency::Mapped, Dtype::Bf16);
    let error = refused(parts(&path, vec![TensorRequest::new("w", [3, 320, 1000])], &mapped));
    assert!(error.to_string().contains("w is stored as MXFP4"), "{error}");
}

#[test]
fn what_only_looks_like_numbers_of_four_bits_stays_what_it_is() {
    let bytes = |shape: &[i64]| Tensor::zeros(shape, (Kind::Uint8, Device::Cpu));
    for (blocks, scales) in [
        (bytes(&[2, 3, 16]), bytes(&[2, 4])),
        (bytes(&[2, 3, 8]), bytes(&[2, 3])),
        (bytes(&[2, 3, 16]).to_kind(Kind::Float), bytes(&[2, 3])),
        (bytes(&[3, 16]), bytes(&[3])),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        save_safetensors(&path, &[("w_blocks".to_owned(), blocks), ("w_scales".to_owned(), scales)]).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.index().tensors.keys().collect::<Vec<_>>(), ["w_blocks", "w_scales"]);
    }
}
