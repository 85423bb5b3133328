//! `activations` over corpora of other kinds and in other places: Parquet, folders, packed files, object stores.

use std::{fs, io::Write, path::Path, sync::Arc};

use arrow_array::{
    Array, ArrayRef, FixedSizeListArray, Float32Array, Int64Array, ListArray, RecordBatch, StringArray,
    cast::AsArray,
    types::{Float32Type, Int32Type, Int64Type},
};
use parquet::{
    arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
    file::properties::WriterProperties,
};
use serde_json::{Value, json};
use transformer_utils::tch::Tensor;

use crate::program::{golden, inside, refuse, succeed};
use crate::support::tensors;

fn index(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Texts for the model that comes with the sources, which has a tokenizer.
fn sentences() -> Vec<String> {
    let words = ["Emma", "was", "very", "happy", "with", "her", "friend", "in", "the", "evening"];
    let sentence = |number: usize| {
        let words: Vec<&str> = (0..1 + number * 7 % 23).map(|place| words[(number + place * 3) % 10]).collect();
        words.join(" ")
    };
    (0..60).map(sentence).collect()
}

fn ids(number: i32) -> Vec<i32> {
    (0..1 + number % 9).map(|place| (number * 7 + place * 3) % 61).collect()
}

/// A file of texts, their ids in two columns: names, and token ids. Row groups of seven.
fn write_parquet(path: &Path, rows: std::ops::Range<i32>) {
    let texts: Vec<String> = sentences()[rows.start as usize..rows.end as usize].to_vec();
    let names: Vec<String> = rows.clone().map(|row| format!("row-{row}")).collect();
    let tokens = rows.clone().map(|row| Some(ids(row).into_iter().map(Some).collect::<Vec<_>>()));
    let columns: [(&str, ArrayRef); 4] = [
        ("name", Arc::new(StringArray::from(names))),
        ("unused", Arc::new(Int64Array::from_iter_values(rows.map(i64::from)))),
        ("text", Arc::new(StringArray::from(texts))),
        ("input_ids", Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(tokens))),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(7)).build();
    let mut writer = ArrowWriter::try_new(fs::File::create(path).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// The values of every text, in the order of the index.
fn by_text(out: &Path, name: &str) -> Vec<Option<Tensor>> {
    let values = |entry: &Value| {
        let file = tensors(&out.join(entry["file"].as_str()?));
        Some(file[name].narrow(0, entry["start"].as_i64().unwrap(), entry["tokens"].as_i64().unwrap()))
    };
    index(&out.join("index.jsonl")).iter().map(values).collect()
}

#[test]
fn the_same_texts_have_the_same_values_from_wherever_they_come() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let lines: String = sentences().iter().map(|text| format!("{}\n", json!(text))).collect();
    fs::write(path("texts.jsonl"), &lines).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(lines.as_bytes()).unwrap();
    fs::write(path("packed.jsonl.gz"), gzip.finish().unwrap()).unwrap();
    fs::write(path("lines.txt"), sentences().join("\n")).unwrap();
    // As Hugging Face lays data sets out.
    fs::create_dir_all(path("dataset/data")).unwrap();
    fs::write(path("dataset/README.md"), "---\n---\n").unwrap();
    fs::write(path("dataset/LICENSE.txt"), "free").unwrap();
    write_parquet(&path("dataset/data/train-00000-of-00002.parquet"), 0..40);
    write_parquet(&path("dataset/data/train-00001-of-00002.parquet"), 40..60);
    let run = |input: &str, name: &str, more: &[&str]| {
        let out = path(name);
        let base = ["--file", input, "--names", "h.1,h.3", "--out", out.to_str().unwrap(), "--store", "f32"];
        succeed("activations", &[&base[..], &["--device", "cpu"], more].concat());
        assert!(!inside(&out).iter().any(|name| name.starts_with('.')), "{:?}", inside(&out));
        (by_text(&out, "h.3"), index(&out.join("index.jsonl")))
    };
    let (expected, entries) = run(path("texts.jsonl").to_str().unwrap(), "expected", &[]);
    assert_eq!(entries.len(), 60);
    assert_eq!(entries[41]["input"], "texts.jsonl");
    let inputs = [
        (path("packed.jsonl.gz").display().to_string(), &[][..]),
        (path("lines.txt").display().to_string(), &["--lines"]),
        (path("dataset").display().to_string(), &["--id-column", "name"]),
        (path("dataset/data/train-*.parquet").display().to_string(), &["--column", "text"]),
        (format!("file://{}", path("texts.jsonl").display()), &[]),
        (format!("file://{}", path("dataset").display()), &["--id-column", "name"]),
    ];
    for (number, (input, more)) in inputs.iter().enumerate() {
        let (found, entries) = run(input, &format!("out-{number}"), more);
        assert_eq!(found.len(), expected.len(), "{input}");
        for (text, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let close = found.as_ref().unwrap().allclose(expected.as_ref().unwrap(), 1e-4, 1e-5, false);
            assert!(close, "{input}: text {text} differs");
        }
        if more.contains(&"--id-column") {
            assert_eq!(entries[41]["id"], "row-41");
            assert_eq!((entries[41]["line"].as_u64(), entries[59]["line"].as_u64()), (Some(2), Some(20)));
            assert_eq!(entries[41]["input"], "data/train-00001-of-00002.parquet");
        }
    }
}

#[test]
fn parquet_columns_of_ids_are_read_and_columns_of_values_written() {
    let folder = tempfile::tempdir().unwrap();
    let [input, out, plain] = ["texts.parquet", "out", "plain"].map(|name| folder.path().join(name));
    write_parquet(&input, 0..60);
    let model = golden("gpt2_plain");
    let base = |out: &Path| {
        ["--model", &model, "--file", input.to_str().unwrap(), "--out", out.to_str().unwrap()]
            .map(str::to_owned)
            .to_vec()
    };
    let run = |arguments: Vec<String>, more: &[&str]| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
        succeed("activations", &arguments);
    };
    let asked = ["--ids-column", "input_ids", "--id-column", "name", "--names", "h.0,h.1.attn.z"];
    run(base(&plain), &[&asked[..], &["--store", "f32"]].concat());
    run(base(&out), &[&asked[..], &["--format", "parquet"]].concat());
    let expected = tensors(&plain.join("activations-00000.safetensors"));
    let file = fs::File::open(out.join("activations-00000.parquet")).unwrap();
    let mut reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().with_batch_size(1000).build().unwrap();
    let rows = reader.next().unwrap().unwrap();
    assert!(reader.next().is_none());
    let integers =
        |name: &str| Vec::<i64>::try_from(&expected[name].to_kind(transformer_utils::tch::Kind::Int64)).unwrap();
    assert_eq!(rows["token_id"].as_primitive::<Int64Type>().values().to_vec(), integers("ids"));
    let positions: Vec<i64> =
        rows["position"].as_primitive::<Int32Type>().values().iter().map(|&at| at.into()).collect();
    assert_eq!(positions, integers("position"));
    let names = rows["text_id"].as_string::<i32>();
    for (row, text) in integers("text").into_iter().enumerate() {
        assert_eq!(names.value(row), format!("row-{text}"));
    }
    for name in ["h.0", "h.1.attn.z"] {
        let column: &FixedSizeListArray = rows[name].as_fixed_size_list();
        let found: &Float32Array = column.values().as_primitive::<Float32Type>();
        let wanted = Vec::<f32>::try_from(expected[name].flatten(0, -1)).unwrap();
        assert_eq!(found.values().to_vec(), wanted, "{name}");
        assert_eq!(column.len(), positions.len());
    }
    assert_eq!(index(&out.join("index.jsonl")).len(), 60);

    let refused = |more: &[&str]| {
        let arguments = base(&folder.path().join("refused"));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
        refuse("activations", &arguments)
    };
    let bf16 = [&asked[..], &["--format", "parquet", "--store", "bf16"]].concat();
    assert!(refused(&bf16).contains("no bf16"));
    let no_column = refused(&["--names", "h.0", "--column", "tokens"]);
    assert!(no_column.contains("has no column \"tokens\"") && no_column.contains("input_ids"), "{no_column}");
    let keys = [&asked[..4], &["--names", "h.0.attn.pattern", "--format", "parquet"]].concat();
    assert!(refused(&keys).contains("fixed width"));
    fs::write(&input, "PAR1 not quite PAR1").unwrap();
    assert!(refused(&["--names", "h.0"]).contains("texts.parquet"));
}

#[test]
fn aggregates_are_those_of_all_rows_whatever_the_pieces() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::create_dir(folder.path().join("in")).unwrap();
    for file in 0..4 {
        let lines: String = (0..40).map(|line| format!("{}\n", json!({ "ids": ids(file * 40 + line) }))).collect();
        fs::write(folder.path().join(format!("in/{file}.jsonl")), lines).unwrap();
    }
    let model = golden("gpt2_plain");
    let run = |out: &str, more: &[&str]| {
        let base = ["--model", &model, "--file", &path("in"), "--names", "h.1,h.0.attn.z", "--out", out];
        succeed("activations", &[&base[..], &["--device", "cpu"], more].concat());
    };
    run(&path("rows"), &["--store", "f32"]);
    let asked = ["--format", "aggregates", "--covariance", "--top", "3"];
    run(&path("whole"), &asked);
    for piece in ["2/3", "1/3", "0/3"] {
        run(&path("pieces"), &[&asked[..], &["--shard", piece]].concat());
    }
    succeed("activations", &["merge", &path("pieces")]);
    let file = |folder: &str| Path::new(&path(folder)).join("aggregates.safetensors");
    assert!(fs::read(file("whole")).unwrap() == fs::read(file("pieces")).unwrap());

    let files = inside(path("rows").as_ref()).into_iter().filter(|name| name.ends_with(".safetensors"));
    let rows: Vec<_> = files.map(|name| tensors(&Path::new(&path("rows")).join(name))).collect();
    let found = tensors(&file("whole"));
    let double = transformer_utils::tch::Kind::Double;
    for name in ["h.1", "h.0.attn.z"] {
        let all: Vec<Tensor> = rows.iter().map(|rows| rows[name].flatten(1, -1).to_kind(double)).collect();
        let all = Tensor::cat(&all, 0);
        let close = |what: &str, expected: &Tensor, relative: f64| {
            let own = &found[&format!("{name}.{what}")];
            assert!(own.allclose(expected, relative, 1e-9, false), "{name}.{what}: {own} and {expected}");
        };
        assert_eq!(i64::try_from(&found[&format!("{name}.count")]).unwrap(), all.size()[0]);
        let centred = &all - all.mean_dim(0, true, double);
        close("mean", &all.mean_dim(0, false, double), 1e-9);
        close("covariance", &(centred.transpose(0, 1).matmul(&centred) / all.size()[0] as f64), 1e-6);
        close("variance", &centred.square().mean_dim(0, false, double), 1e-6);
        let norms = all.norm_scalaropt_dim(2, [1], false);
        close("norm_mean", &norms.mean(double), 1e-9);
        // The least number that so many of all are not above; to half a bin of an eighth of an octave.
        let ranks = (&found["quantiles"] * all.size()[0]).ceil().clamp_min(1.0) - 1.0;
        let at_parts = |values: &Tensor| {
            values.sort(0, false).0.index_select(0, &ranks.to_kind(transformer_utils::tch::Kind::Int64))
        };
        close("quantiles", &at_parts(&all), 0.05);
        close("norm_quantiles", &at_parts(&norms), 0.05);
        let (top, _) = all.topk(3, 0, true, true);
        close("top_values", &top.to_kind(transformer_utils::tch::Kind::Float), 1e-6);
        // The last token of a context is the one with the value.
        let at = |what: &str| found[&format!("{name}.{what}")].int64_value(&[0, 0]);
        let text = (at("top_unit") * 40 + at("top_text")) as i32;
        let context = found[&format!("{name}.top_context")].int64_value(&[0, 0, 15]);
        assert_eq!(context, i64::from(ids(text)[at("top_position") as usize]));
    }
}

#[test]
fn pieces_share_an_object_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let model = golden("gpt2_plain");
    fs::create_dir(path("in")).unwrap();
    for file in 0..3 {
        let lines: String = (0..150).map(|line| format!("{}\n", json!({ "ids": ids(file * 150 + line) }))).collect();
        fs::write(path("in").join(format!("{file}.jsonl")), lines).unwrap();
    }
    let address = |name: &str| format!("file://{}", path(name).display());
    let run = |input: &str, out: &str, piece: &str| {
        let base = ["--model", &model, "--names", "h.1.mlp.act", "--file-mib", "1", "--batch-tokens", "64"];
        let own = ["--file", input, "--out", out, "--shard", piece, "--device", "cpu"];
        succeed("activations", &[&base[..], &own].concat());
    };
    run(&path("in").display().to_string(), &path("local").display().to_string(), "0/1");
    let (input, out) = (address("in"), address("object"));
    for piece in ["2/3", "0/3", "1/3"] {
        run(&input, &out, piece);
    }
    succeed("activations", &["merge", &out]);
    let files = inside(&path("local"));
    assert_eq!(files, inside(&path("object")));
    for name in files {
        assert!(
            fs::read(path("local").join(&name)).unwrap() == fs::read(path("object").join(&name)).unwrap(),
            "{name}"
        );
    }
    for (address, expected) in [
        ("s3://", "s3"),
        ("ftp://host/texts.jsonl", "expected s3://bucket/path"),
        ("file:///nowhere/at/all.jsonl", "no texts"),
    ] {
        let line = refuse("activations", &["--file", address, "--names", "h.0", "--out", "o"]);
        assert!(line.contains(expected), "{line}");
    }
}
