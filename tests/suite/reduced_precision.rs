//! bf16 runs beside Hugging Face's: no site may be further from the exact values than 1.1 times theirs.

use transformer_utils::{
    lowmem::{Dtype, DtypeChoice, LoadOptions},
    models::{Input, Model, Values},
    partial::{Activations, partial_forward},
    tch::{Kind, Tensor},
};

use crate::support::{Case, cases};

/// What the promise allows: our error over Hugging Face's.
const RATIO: f64 = 1.1;
/// Below this share of a site's values an error is rounding of the reference itself, which is our f32 run.
const NOISE: f64 = 2e-5;

fn model(case: &Case, dtype: Dtype) -> Model {
    case.model(&LoadOptions { dtype: DtypeChoice::Fixed(dtype), ..LoadOptions::default() })
}

fn rms(tensor: &Tensor) -> f64 {
    let tensor = tensor.to_kind(Kind::Double);
    (&tensor * &tensor).mean(Kind::Double).sqrt().double_value(&[])
}

/// Compares `names` of one bf16 run; gives the largest ratio and the site it is at, and puts what is too much to `failures`.
fn worst(
    case: &Case,
    model: &Model,
    names: &[&str],
    found: &Activations,
    exact: &Activations,
    failures: &mut Vec<String>,
) -> (f64, String) {
    let bf16 = case.bf16();
    let errors = bf16["rms_error"].as_object().unwrap();
    let mut worst = (0.0, String::new());
    for name in names {
        let theirs = errors[*name].as_f64().unwrap();
        let (found, exact) = (found.get(name).unwrap(), exact.get(name).unwrap());
        let sites = model.sites();
        let kind = match sites.info(sites.parse(name).unwrap()).values {
            Values::AtLeastF32 => Kind::Float,
            _ => Kind::BFloat16,
        };
        assert_eq!(found.kind(), kind, "{} {name}", case.name);
        let error = rms(&(found.to_kind(Kind::Double) - exact.to_kind(Kind::Double)));
        if error > RATIO * theirs + NOISE * rms(exact) {
            failures.push(format!("{} {name}: {error:.3e}, Hugging Face's {theirs:.3e}", case.name));
        }
        if error / theirs.max(NOISE * rms(exact)) > worst.0 {
            worst = (error / theirs.max(NOISE * rms(exact)), (*name).to_owned());
        }
    }
    worst
}

/// The contexts of `tests/golden/bf16.py`, by its rule.
fn contexts(case: &Case, model: &Model) -> Input {
    let (rows, length) = (case.bf16()["contexts"].as_u64().unwrap() as usize, model.architecture().context as usize);
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        3 + ((state >> 33) % (model.architecture().vocabulary as u64 - 3)) as i64
    };
    let rows: Vec<Vec<i64>> = (0..rows).map(|_| (0..length).map(|_| next()).collect()).collect();
    Input::from_rows(&rows).unwrap()
}

#[test]
fn bf16_is_as_exact_as_hugging_face_s_at_every_site() {
    let mut failures = Vec::new();
    for case in cases().into_iter().filter(|case| case.is_original() && case.bf16().get("rows").is_none()) {
        let (narrow, wide) = (model(&case, Dtype::Bf16), model(&case, Dtype::F32));
        let input = || contexts(&case, &wide);
        let errors = case.bf16()["rms_error"].as_object().unwrap().clone();
        let names: Vec<&str> = errors.keys().map(String::as_str).collect();
        // With every site looked at, attention takes the path that shows its pattern; without, the fused one.
        let streams: Vec<&str> = names.iter().copied().filter(|name| !name.contains("attn")).collect();
        for names in [&names, &streams] {
            let found = partial_forward(&narrow, names, &input()).unwrap();
            let exact = partial_forward(&wide, names, &input()).unwrap();
            let (ratio, name) = worst(&case, &narrow, names, &found, &exact, &mut failures);
            println!("{:28} {ratio:.2} {name}", case.name);
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
