//! The files of a tokenizer.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer, models::bpe::BPE, pre_tokenizers::byte_level::ByteLevel};

use super::{
    error::{Error, Result},
    pieces::Spelling,
    tokenizer::{Inner, SpecialTokens},
};

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
const SPECIAL: &str = "special_tokens_map.json";
const TEMPLATE: &str = "chat_template.jinja";
const TEMPLATE_JSON: &str = "chat_template.json";
const MORE_TEMPLATES: &str = "additional_chat_templates";

/// The tokenizer of a folder, where there is one.
pub(super) fn open(folder: &Path) -> Result<Option<Inner>> {
    let tokenizer = folder.join(TOKENIZER);
    if tokenizer.is_file() {
        return open_file(&tokenizer).map(Some);
    }
    let (vocabulary, merges) = (folder.join("vocab.json"), folder.join("merges.txt"));
    if !vocabulary.is_file() || !merges.is_file() {
        return Ok(None);
    }
    let model = BPE::from_file(&vocabulary.to_string_lossy(), &merges.to_string_lossy()).build();
    let mut pipeline = Tokenizer::new(model.map_err(|error| refused(&vocabulary, error))?);
    pipeline.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    pipeline.with_decoder(Some(ByteLevel::default()));
    complete(pipeline, folder).map(Some)
}

/// The tokenizer of a `tokenizer.json` and the files beside it.
pub(super) fn open_file(path: &Path) -> Result<Inner> {
    let bytes = fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    let mut pipeline = Tokenizer::from_bytes(bytes).map_err(|error| refused(path, error))?;
    // Settings of batches: a text keeps its length.
    pipeline.with_truncation(None).map_err(|error| refused(path, error))?;
    pipeline.with_padding(None);
    complete(pipeline, path.parent().unwrap_or(Path::new("")))
}

fn refused(path: &Path, reason: impl ToString) -> Error {
    Error::File { path: path.to_owned(), reason: reason.to_string() }
}

fn read_text(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { path: path.to_owned(), source }),
    }
}

fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let Some(text) = read_text(path)? else { return Ok(Map::new()) };
    serde_json::from_str(&text).map_err(|error| refused(path, error))
}

/// Adds what the files beside the pipeline say.
fn complete(mut pipeline: Tokenizer, folder: &Path) -> Result<Inner> {
    let path = folder.join(CONFIG);
    let config = read_object(&path)?;
    let map = read_object(&folder.join(SPECIAL))?;
    add_tokens(&mut pipeline, &config, &path)?;
    let spelled = |role: &str| [&config, &map].into_iter().find_map(|file| token_text(file.get(role)?));
    let roles: Vec<String> =
        ["bos_token", "eos_token", "unk_token", "pad_token"].into_iter().filter_map(spelled).collect();
    // Special where the vocabulary has them: without this they would be cut into pieces.
    let special = roles.iter().filter(|token| pipeline.token_to_id(token).is_some());
    let special: Vec<AddedToken> = special.map(|token| AddedToken::from(token.clone(), true)).collect();
    let known = pipeline.get_added_vocabulary();
    let special: Vec<AddedToken> =
        special.into_iter().filter(|token| !known.is_special_token(&token.content)).collect();
    pipeline.add_special_tokens(special).map_err(|error| refused(&path, error))?;

    let token = |role: &str| {
        let text = spelled(role)?;
        Some((i64::from(pipeline.token_to_id(&text)?), text))
    };
    let special = SpecialTokens {
        bos: token("bos_token"),
        eos: token("eos_token"),
        unk: token("unk_token"),
        pad: token("pad_token"),
    };
    let (add_bos, add_eos) = (flag(&config, "add_bos_token"), flag(&config, "add_eos_token"));
    let (mut before, mut after) = (Vec::new(), Vec::new());
    // Where the config says which tokens stand around a text, it is right and not the pipeline, as in transformers.
    if add_bos.is_some() || add_eos.is_some() {
        pipeline.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        let edge = |wanted: Option<bool>, token: &Option<(i64, String)>, role: &str| match (wanted, token) {
            (Some(true), Some((id, _))) => Ok(vec![*id]),
            (Some(true), None) => Err(refused(&path, format!("add_{role} is true, but there is no {role}"))),
            _ => Ok(Vec::new()),
        };
        before = edge(add_bos, &special.bos, "bos_token")?;
        after = edge(add_eos, &special.eos, "eos_token")?;
    }
    let spelling = Spelling::of(pipeline.get_decoder());
    let templates = templates(folder, &config)?;
    Ok(Inner { pipeline, spelling, special, before, after, templates })
}

fn flag(config: &Map<String, Value>, name: &str) -> Option<bool> {
    config.get(name)?.as_bool()
}

/// A token's text, which is a string or the field of an object.
fn token_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// Adds the tokens of `added_tokens_decoder` that the pipeline does not have yet.
fn add_tokens(pipeline: &mut Tokenizer, config: &Map<String, Value>, path: &Path) -> Result<()> {
    let Some(listed) = config.get("added_tokens_decoder").and_then(Value::as_object) else { return Ok(()) };
    let mut tokens = Vec::new();
    for (id, token) in listed {
        let malformed = |reason: &str| refused(path, format!("added_tokens_decoder, {id:?}: {reason}"));
        let number: u32 = id.parse().map_err(|_| malformed("expected a token id"))?;
        let text = token_text(token).ok_or_else(|| malformed("expected a token with content"))?;
        let set = |name: &str, default| token.get(name).and_then(Value::as_bool).unwrap_or(default);
        let special = set("special", false);
        let token = AddedToken::from(text, special)
            .single_word(set("single_word", false))
            .lstrip(set("lstrip", false))
            .rstrip(set("rstrip", false))
            .normalized(set("normalized", !special));
        tokens.push((number, token));
    }
    tokens.sort_by_key(|(id, _)| *id);
    for (id, token) in tokens {
        if pipeline.get_added_vocabulary().simple_id_to_token(id).is_some_and(|known| known == token.content) {
            continue;
        }
        let content = token.content.clone();
        let added = if token.special { pipeline.add_special_tokens([token]) } else { pipeline.add_tokens([token]) };
        added.map_err(|error| refused(path, error))?;
        let found = pipeline.token_to_id(&content);
        if found != Some(id) {
            let found = found.map_or_else(|| "none".to_owned(), |found| found.to_string());
            let reason =
                format!("added_tokens_decoder says that {content:?} has the id {id}, the tokenizer says {found}");
            return Err(refused(path, reason));
        }
    }
    Ok(())
}

/// The chat templates by name. A file of its own comes before the config's field.
fn templates(folder: &Path, config: &Map<String, Value>) -> Result<BTreeMap<String, String>> {
    let mut templates = BTreeMap::new();
    let path = folder.join(TEMPLATE_JSON);
    let json = read_object(&path)?;
    for (file, path) in [(config, folder.join(CONFIG)), (&json, path)] {
        if let Some(value) = file.get("chat_template") {
            listed_templates(value, &path, &mut templates)?;
        }
    }
    if let Some(text) = read_text(&folder.join(TEMPLATE))? {
        templates.insert("default".into(), text);
    }
    for path in files_in(&folder.join(MORE_TEMPLATES))? {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if path.extension().is_some_and(|extension| extension == "jinja")
            && let Some(text) = read_text(&path)?
        {
            templates.insert(name, text);
        }
    }
    Ok(templates)
}

/// One template, or a list of templates with names.
fn listed_templates(value: &Value, path: &Path, templates: &mut BTreeMap<String, String>) -> Result<()> {
    let malformed = || refused(path, "chat_template: expected a text, or a list of objects with name and template");
    match value {
        Value::Null => {}
        Value::String(text) => {
            templates.insert("default".into(), text.clone());
        }
        Value::Array(list) => {
            for item in list {
                let field = |name: &str| Some(item.get(name)?.as_str()?.to_owned());
                let (name, text) = field("name").zip(field("template")).ok_or_else(malformed)?;
                templates.insert(name, text);
            }
        }
        _ => return Err(malformed()),
    }
    Ok(())
}

fn files_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |source| Error::Io { path: folder.to_owned(), source };
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry.map_err(failed)?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}
