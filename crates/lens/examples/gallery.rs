//! Draws invented tables with every renderer, to look at: `cargo run -p lens --example gallery -- FOLDER`.
//!
//! Nothing here is computed by a model. The tables are made to be hard to draw: scripts, long prompts, one token,
//! many rows, missing values.

use std::error::Error;
use std::fs;
use std::path::Path;

use lens::picture::{self, Style};
use lens::terminal::{self, TerminalStyle};
use lens::{
    Attention, ColorDepth, Columns, Grid, HeadPattern, Measure, Row, Shading, Table, Token, TopK, compare, csv, html,
};

const MEASURES: [Measure; 5] = [Measure::Probs, Measure::Logits, Measure::Ranks, Measure::Kl, Measure::Entropy];

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("the folder to write into is missing")?;
    let folder = Path::new(&folder);
    fs::create_dir_all(folder)?;
    let english = invent("gpt2", &pieces(ENGLISH), 12, false);
    let tables = [
        ("english", english.clone()),
        (
            "chinese",
            invent(
                "gpt2-chinese",
                &pieces("这|是|一|个|关于|语言|模型|的|句子|,|今天|天气|很|好|。|日本語|と|한국어|도"),
                12,
                false,
            ),
        ),
        (
            "arabic",
            invent(
                "aragpt2",
                &pieces("اللغة| العربية| تكتب| من| اليمين| إلى| اليسار| و| עברית| גם| کن| می\u{200c}خواهم"),
                12,
                false,
            ),
        ),
        ("scripts", invent("many scripts", &pieces(SCRIPTS), 6, false)),
        (
            "emoji",
            invent(
                "emoji",
                &pieces(
                    "I|❤️| Rust| 🦀|!| 👩‍🚀|🚀|🇩🇪|👍🏽| 😀|\\xF0\\x9F|\\x98\\x80|…|\u{200b}|\u{202e}|\u{301}||\u{fffd}",
                ),
                12,
                false,
            ),
        ),
        (
            "code",
            invent(
                "code",
                &pieces(
                    "def| f|(x|):|\n|\t|if| x| <| 0|:|\n|\t\t|return| \"|</|script|>\"|\n|        |return| x| *| 2|\r\n|\u{0}",
                ),
                12,
                false,
            ),
        ),
        ("one", invent("gpt2", &pieces("Hello"), 12, false)),
        ("deep", invent("gpt2-xl", &repeated(ENGLISH, 45), 48, true)),
        ("long", invent("gpt2", &repeated(ENGLISH, 300), 12, false)),
    ];
    for (name, table) in &tables {
        println!("{name}");
        write(folder, name, table)?;
    }

    let mut edited = english.clone();
    edited.model = "gpt2, edited".into();
    for row in edited.rows.iter_mut().skip(6) {
        row.top1.swap(4, 5);
        row.top1_text.swap(4, 5);
        for (measure, values) in &mut row.values {
            let scale = if *measure == Measure::Ranks { 40.0 } else { 0.3 };
            for (column, value) in values.iter_mut().enumerate() {
                *value += scale * (column as f64 * 1.7).sin();
            }
        }
    }
    let comparison = compare(&english, &edited)?;
    for (index, page) in picture::png(&comparison, &MEASURES, &Style::default())?.iter().enumerate() {
        fs::write(folder.join(format!("compare-{index}.png")), page)?;
    }
    fs::write(folder.join("compare.html"), html::page(&comparison, &Style::default())?)?;
    let style = TerminalStyle::default().width(120).color(ColorDepth::TrueColor);
    fs::write(folder.join("compare.ansi"), terminal::render(&comparison, &Measure::Probs, &style)?)?;
    for (name, grid) in [
        ("grid-positions", effects(12, &pieces(ENGLISH), None)),
        ("grid-long", effects(48, &repeated(ENGLISH, 300), None)),
        ("grid-heads", effects(48, &[], Some(32))),
        ("grid-text", effects(1, &repeated(ENGLISH, 40), None)),
    ] {
        println!("{name}");
        write_grid(folder, name, &grid)?;
    }
    for (name, tokens, heads) in [("attention", 20, 32), ("attention-one", 20, 1), ("attention-long", 300, 6)] {
        println!("{name}");
        write_attention(folder, name, &attention(&repeated(ENGLISH, tokens), heads))?;
    }
    Ok(())
}

fn write(folder: &Path, name: &str, table: &Table) -> Result<(), Box<dyn Error>> {
    for dark in [false, true] {
        let style = Style::default().dark(dark).top_down(dark);
        let shade = if dark { "dark" } else { "light" };
        for (index, page) in picture::png(table, &MEASURES[..1], &style)?.iter().enumerate() {
            fs::write(folder.join(format!("{name}-{shade}-{index}.png")), page)?;
        }
        for (index, page) in picture::svg(table, &MEASURES[..1], &style)?.iter().enumerate() {
            fs::write(folder.join(format!("{name}-{shade}-{index}.svg")), page)?;
        }
    }
    for (index, page) in picture::png(table, &MEASURES, &Style::default())?.iter().enumerate() {
        fs::write(folder.join(format!("{name}-stacked-{index}.png")), page)?;
    }
    for (depth, suffix) in
        [(ColorDepth::None, "txt"), (ColorDepth::Ansi256, "256.ansi"), (ColorDepth::TrueColor, "ansi")]
    {
        let style = TerminalStyle::default().width(120).color(depth);
        fs::write(folder.join(format!("{name}.{suffix}")), terminal::render(table, &Measure::Probs, &style)?)?;
    }
    fs::write(folder.join(format!("{name}.html")), html::page(table, &Style::default())?)?;
    fs::write(folder.join(format!("{name}.json")), table.to_json()?)?;
    fs::write(folder.join(format!("{name}.csv")), csv::write(table)?)?;
    Ok(())
}

fn write_grid(folder: &Path, name: &str, grid: &Grid) -> Result<(), Box<dyn Error>> {
    for (dark, shade) in [(false, "light"), (true, "dark")] {
        let style = Style::default().dark(dark);
        for (index, page) in picture::png(grid, &[], &style)?.iter().enumerate() {
            fs::write(folder.join(format!("{name}-{shade}-{index}.png")), page)?;
        }
    }
    for width in [80, 120] {
        for (color, suffix) in [(ColorDepth::None, "txt"), (ColorDepth::TrueColor, "ansi")] {
            let style = TerminalStyle::default().width(width).color(color);
            fs::write(folder.join(format!("{name}-{width}.{suffix}")), terminal::render(grid, None, &style)?)?;
            if let Ok(text) = terminal::text(grid, &style) {
                fs::write(folder.join(format!("{name}-text-{width}.{suffix}")), text)?;
            }
        }
    }
    fs::write(folder.join(format!("{name}.html")), html::page(grid, &Style::default())?)?;
    fs::write(folder.join(format!("{name}.json")), grid.to_json()?)?;
    fs::write(folder.join(format!("{name}.csv")), csv::write(grid)?)?;
    Ok(())
}

fn write_attention(folder: &Path, name: &str, attention: &Attention) -> Result<(), Box<dyn Error>> {
    for (dark, shade) in [(false, "light"), (true, "dark")] {
        let style = Style::default().dark(dark);
        for (index, page) in picture::attention_png(attention, &style)?.iter().enumerate() {
            fs::write(folder.join(format!("{name}-{shade}-{index}.png")), page)?;
        }
    }
    fs::write(folder.join(format!("{name}.html")), html::attention(attention, &Style::default())?)?;
    Ok(())
}

/// Effects that look like those of patches: early at the token that differs, late at the last.
fn effects(blocks: usize, texts: &[String], heads: Option<usize>) -> Grid {
    let count = heads.unwrap_or(texts.len());
    let token = |(id, text): (usize, &String)| Token { id: id as i64, text: text.clone() };
    let tokens: Vec<Token> = texts.iter().enumerate().map(token).collect();
    let mut corrupted = tokens.clone();
    if let Some(token) = corrupted.get_mut(4) {
        *token = Token { id: 999, text: " neutrino".into() };
    }
    let value = |row: usize, column: usize| {
        let depth = row as f64 / blocks.max(2) as f64;
        let noise = 0.2 * ((row * 31 + column * 17) as f64 * 12.9898).sin();
        match heads {
            Some(_) if (row * 7 + column).is_multiple_of(97) => 3.0 * depth - 1.0,
            Some(_) => noise * depth,
            None if column < 4 => f64::NAN,
            None if column == 4 => 4.0 * (1.0 - depth) + noise,
            None if column + 1 == count => 4.0 * depth + noise,
            None => noise,
        }
    };
    Grid {
        model: "gpt2".into(),
        method: "patched".into(),
        metric: "logit difference of “ plasma” and “ blood”".into(),
        rows: (0..blocks)
            .map(|block| if heads.is_some() { format!("h.{block}.attn.z") } else { format!("h.{block}") })
            .collect(),
        columns: match heads {
            Some(heads) => Columns::Heads((0..heads as i64).collect()),
            None => Columns::Positions((0..count as i64).collect()),
        },
        corrupted_tokens: (!tokens.is_empty()).then_some(corrupted),
        tokens,
        values: (0..blocks).map(|row| (0..count).map(|column| value(row, column)).collect()).collect(),
        shading: Shading::Around(if heads.is_some() { 0.0 } else { -0.5 }),
        clean: Some(3.75),
        corrupted: Some(-0.5),
    }
}

/// Heads that look at the first token, at the one before, at themselves, or at an earlier copy.
fn attention(texts: &[String], heads: usize) -> Attention {
    let weights = |head: usize, query: usize| {
        let size = |key: usize| {
            let copy = key > 0 && texts.get(key - 1) == texts.get(query);
            let kind = match head % 4 {
                0 => key == 0,
                1 => key + 1 == query,
                2 => key == query,
                _ => copy,
            };
            f64::from(u8::from(kind)) * 6.0
                + ((query * 13 + key * 7 + head) as f64).sin().abs()
                + f64::from(u8::from(key == 0))
        };
        let sizes: Vec<f64> = (0..=query).map(size).collect();
        let sum: f64 = sizes.iter().sum();
        let rest = texts.len() - sizes.len();
        sizes.iter().map(|size| (size / sum) as f32).chain(std::iter::repeat_n(0.0, rest)).collect()
    };
    Attention {
        model: "gpt2".into(),
        tokens: texts.iter().enumerate().map(|(id, text)| Token { id: id as i64, text: text.clone() }).collect(),
        heads: (0..heads)
            .map(|head| HeadPattern {
                layer: head / 12,
                head: head % 12,
                pattern: (0..texts.len()).map(|query| weights(head, query)).collect(),
            })
            .collect(),
    }
}

const ENGLISH: &str = "Sometimes|,| when| people| say| plasma|,| they| mean| a| state| of| matter|.| Other| times|,| understandably|,| they| mean| blood";
const SCRIPTS: &str = " the|naïve| हिन्दी| ไทย| Ελληνικά|Москва|ქართული|Հայերեն|العربية|עברית|हिन्दी|বাংলা|ਪੰਜਾਬੀ|ગુજરાતી|தமிழ்|తెలుగు|ಕನ್ನಡ|മലയാളം|සිංහල|ไทย|ລາວ|ខ្មែរ|မြန်မာ|አማርኛ|漢字|カタカナ|한국어|∑∫√|→⇒■";

fn pieces(text: &str) -> Vec<String> {
    text.split('|').map(ToOwned::to_owned).collect()
}

fn repeated(text: &str, count: usize) -> Vec<String> {
    pieces(text).into_iter().cycle().take(count).collect()
}

/// A table that looks like a lens: vague at first, then sure, and mostly right in the end.
fn invent(model: &str, texts: &[String], blocks: usize, subblocks: bool) -> Table {
    let mut names = vec!["input".to_owned()];
    for block in 0..blocks {
        if subblocks {
            names.push(format!("h.{block}.attn"));
        }
        names.push(format!("h.{block}"));
    }
    let id = |column: usize| 100 + texts.iter().position(|text| Some(text) == texts.get(column)).unwrap_or(0) as i64;
    let last = (names.len() - 1).max(1) as f64;
    let rows = names.into_iter().enumerate().map(|(row, name)| {
        let depth = row as f64 / last;
        let cells: Vec<(usize, f64)> = (0..texts.len())
            .map(|column| {
                let noise = ((column * 7 + 3) as f64 * 12.9898).sin().abs();
                let sure = (depth * 1.25 - 0.9 * noise).clamp(0.0, 1.0).powi(2) * (1.0 - 0.4 * noise);
                let next = (column + 1) % texts.len();
                let guess = if sure > 0.12 { next } else { (column + (row + column) % 5) % texts.len() };
                // Some predictions stay wrong.
                let guess = if column % 4 == 2 && guess == next { (column + 3) % texts.len() } else { guess };
                (guess, sure)
            })
            .collect();
        let values = MEASURES.iter().map(|measure| {
            let value = |column: usize, sure: f64| match measure {
                Measure::Probs => sure,
                Measure::Logits => -60.0 - 80.0 * depth + 12.0 * sure,
                Measure::Ranks => (50_257_f64.powf((1.0 - depth) * (1.0 - sure))).round(),
                Measure::Kl if row + 1 == last as usize + 1 => 0.0,
                Measure::Kl if column == 0 => 40.0 * (1.0 - depth),
                Measure::Kl => 11.0 * (1.0 - depth).powf(1.4) * (1.3 - sure),
                _ if column == 0 && row == 0 => f64::NAN,
                _ => 10.8 * (1.0 - sure) * (1.0 - 0.6 * depth),
            };
            (measure.clone(), cells.iter().enumerate().map(|(column, (_, sure))| value(column, *sure)).collect())
        });
        let top_k = cells.iter().map(|&(guess, sure)| {
            let share = |rank: usize| if rank == 0 { sure.max(0.05) } else { (1.0 - sure) * 0.4 / rank as f64 };
            (0..5.min(texts.len()))
                .map(|rank| {
                    let column = (guess + rank) % texts.len();
                    TopK { id: id(column), text: texts.get(column).cloned().unwrap_or_default(), prob: share(rank) }
                })
                .collect()
        });
        Row {
            name,
            top1: cells.iter().map(|(guess, _)| id(*guess)).collect(),
            top1_text: cells.iter().map(|(guess, _)| texts.get(*guess).cloned().unwrap_or_default()).collect(),
            values: values.collect(),
            top_k: Some(top_k.collect()),
        }
    });
    Table {
        model: model.into(),
        dtype: "f32".into(),
        lens: None,
        measures: MEASURES.to_vec(),
        rows: rows.collect(),
        tokens: (0..texts.len())
            .map(|column| Token { id: id(column), text: texts.get(column).cloned().unwrap_or_default() })
            .collect(),
        positions: (0..texts.len()).collect(),
    }
}
