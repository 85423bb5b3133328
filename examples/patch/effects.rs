//! The effects, by the method that was chosen.

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use transformer_utils::{
    edits,
    lens::{Columns, Grid, Shading},
    models::Input,
    partial::{
        self, AttributionPatching, DirectLogitAttribution, Edit, Effects, InputAttribution, Metric, PatchProgress,
        Patching, Run,
    },
    tch::{Device, Tensor, no_grad},
};

use crate::{
    By, Direction, Flags, Method, MetricName,
    common::{model::Opened, progress},
    texts::{Texts, tokens},
};

/// Memory for patching where none is given, in MiB.
const MEMORY: u64 = 1024;
/// The neurons that are shown.
const NEURONS: usize = 20;

/// Sites, and what every run changes there.
type Edits = Vec<(String, Edit)>;

/// What is asked of the logits, and what it is called.
struct Question {
    metric: Metric,
    name: String,
}

/// Measures the effects and puts the texts beside them.
pub fn measure(flags: &Flags, opened: &Opened, pair: &Texts) -> Result<Grid> {
    ensure!(
        !flags.beside_patching || flags.method == Method::Attribution,
        "--beside-patching is for --method attribution"
    );
    if flags.method != Method::Patch {
        ensure!(flags.memory.is_none(), "--memory is for --method patch");
        ensure!(flags.to.is_none(), "--to is for --method patch");
        ensure!(flags.direction == Direction::CleanIntoCorrupted, "--direction is for --method patch; swap the texts");
    }
    ensure!(
        matches!(flags.method, Method::Patch | Method::Attribution) || !flags.edits.is_given(),
        "--edit and --steer are for --method patch and attribution"
    );
    let edits = flags.edits.read()?;
    let question = ask(flags, opened, pair, &edits)?;
    let effects = match flags.method {
        Method::Patch => patch(flags, opened, pair, edits, &question.metric)?,
        Method::Attribution => attribution(flags, opened, pair, edits, &question.metric)?,
        Method::Direct => direct(flags, opened, pair, &question.metric)?,
        Method::Gradient | Method::Integrated => input(flags, opened, pair, &question.metric)?,
    };
    // A patched run has a metric of its own; what it is without the patch is no effect.
    let base = match flags.direction {
        Direction::CleanIntoCorrupted => effects.corrupted,
        Direction::CorruptedIntoClean => effects.clean,
    };
    let shading = Shading::Around(base.filter(|_| flags.method == Method::Patch).unwrap_or(0.0));
    let name = if flags.edits.is_given() { format!("{}, {}", opened.name, flags.edits) } else { opened.name.clone() };
    let mut grid = Grid::new(name, &effects).shading(shading);
    grid.metric = question.name;
    if flags.method == Method::Integrated {
        // That of zeros, which is no run of the pair.
        grid.corrupted = None;
    }
    if matches!(grid.columns, Columns::Positions(_)) {
        let both = matches!(flags.method, Method::Patch | Method::Attribution);
        let corrupted = pair.corrupted.as_ref().filter(|_| both);
        grid = grid
            .tokens(tokens(&pair.clean, opened)?)
            .corrupted_tokens(corrupted.map(|ids| tokens(ids, opened)).transpose()?);
    }
    Ok(grid)
}

fn by(flags: &Flags, default: By, allowed: &[By]) -> Result<By> {
    let by = flags.by.unwrap_or(default);
    let columns = allowed.iter().map(name).collect::<Vec<_>>().join(", ");
    ensure!(allowed.contains(&by), "--method {} takes no --by {}, but {columns}", name(&flags.method), name(&by));
    Ok(by)
}

/// What a value is called on the command line.
fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// The sites asked for; by heads, those that have some.
fn patterns(flags: &Flags, by: By) -> Vec<String> {
    if !flags.sites.is_empty() {
        return flags.sites.clone();
    }
    vec![if by == By::Heads { "h.*.attn.z" } else { "h.*" }.to_owned()]
}

fn patch(flags: &Flags, opened: &Opened, pair: &Texts, edits: Edits, metric: &Metric) -> Result<Effects> {
    let by = by(flags, By::Positions, &[By::Positions, By::Heads, By::Site])?;
    let bar = progress::steps(0);
    let mut patching = Patching::new(&opened.model, pair.clean.as_slice(), pair.need_corrupted()?)?
        .direction(match flags.direction {
            Direction::CleanIntoCorrupted => partial::Direction::CleanIntoCorrupted,
            Direction::CorruptedIntoClean => partial::Direction::CorruptedIntoClean,
        })
        .memory_budget(flags.memory.unwrap_or(MEMORY) << 20)
        .on_progress(|PatchProgress { done, total, .. }| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        });
    for (site, edit) in edits {
        patching = patching.edit(site, edit)?;
    }
    for pattern in patterns(flags, by) {
        patching = patching.sites(pattern.as_str())?;
    }
    if let Some(receiver) = &flags.to {
        patching = patching.received_at(edits::patch(receiver).with_context(|| format!("--to {receiver}"))?);
    }
    if flags.through_mlps {
        patching = patching.through_mlps();
    }
    if let Some(positions) = &flags.positions {
        patching = patching.positions(positions.within(pair.clean.len() as i64)?);
    }
    patching = match by {
        By::Positions => patching.each_position(),
        By::Heads => patching.each_head(),
        By::Site | By::Neurons => patching,
    };
    let patched = no_grad(|| patching.run(metric))?;
    bar.finish_and_clear();
    Ok(patched.effects)
}

fn attribution(flags: &Flags, opened: &Opened, pair: &Texts, edits: Edits, metric: &Metric) -> Result<Effects> {
    refuse_positions(flags)?;
    let by = by(flags, By::Positions, &[By::Positions, By::Heads, By::Site])?;
    let mut patching = AttributionPatching::new(&opened.model, pair.clean.as_slice(), pair.need_corrupted()?)?;
    for (site, edit) in edits {
        patching = patching.edit(site, edit)?;
    }
    for pattern in patterns(flags, by) {
        patching = patching.sites(pattern.as_str())?;
    }
    patching = match by {
        By::Positions => patching.each_position(),
        By::Heads => patching.each_head(),
        By::Site | By::Neurons => patching,
    };
    if !flags.beside_patching {
        return Ok(patching.run(metric)?);
    }
    let both = patching.beside_patching(metric)?;
    let agreement = match both.correlation {
        Some(found) => {
            format!("Pearson {:.3}, Spearman {:.3} over {} places", found.pearson, found.spearman, found.pairs)
        }
        None => "there are too few numbers, or all are equal".into(),
    };
    eprintln!("estimates beside what patching does: {agreement}");
    Ok(both.estimated)
}

fn direct(flags: &Flags, opened: &Opened, pair: &Texts, metric: &Metric) -> Result<Effects> {
    refuse_sites(flags)?;
    let by = by(flags, By::Site, &[By::Site, By::Heads, By::Neurons, By::Positions])?;
    let mut attribution = DirectLogitAttribution::new(&opened.model, metric)?;
    match (&flags.positions, by) {
        (Some(positions), _) => attribution = attribution.positions(positions.within(pair.clean.len() as i64)?),
        (None, By::Positions) => attribution = attribution.positions(0..pair.clean.len() as i64),
        (None, _) => {}
    }
    let clean = pair.clean.as_slice();
    Ok(match by {
        By::Site | By::Positions => attribution.layers(clean)?,
        By::Heads => attribution.heads(clean)?,
        By::Neurons => attribution.neurons(clean, NEURONS)?,
    })
}

fn input(flags: &Flags, opened: &Opened, pair: &Texts, metric: &Metric) -> Result<Effects> {
    refuse_sites(flags)?;
    refuse_positions(flags)?;
    by(flags, By::Positions, &[By::Positions])?;
    let attribution = InputAttribution::new(&opened.model, metric)?;
    let clean = pair.clean.as_slice();
    Ok(match flags.method {
        Method::Gradient => attribution.gradient_times_input(clean)?,
        // From the corrupted text only the tokens in which it differs could answer for anything.
        _ => attribution.integrated_gradients(clean)?,
    })
}

fn refuse_sites(flags: &Flags) -> Result<()> {
    ensure!(
        flags.sites.is_empty(),
        "--sites are for --method patch and attribution; {} has its own",
        name(&flags.method)
    );
    Ok(())
}

fn refuse_positions(flags: &Flags) -> Result<()> {
    ensure!(flags.positions.is_none(), "--positions are for --method patch and direct");
    Ok(())
}

/// The metric, and its name with the tokens in it. What the model says by itself it says under the edits.
fn ask(flags: &Flags, opened: &Opened, pair: &Texts, edits: &Edits) -> Result<Question> {
    let asked = &flags.question;
    let needs_answer = asked.metric != MetricName::Kl;
    if asked.metric != MetricName::LogitDifference {
        ensure!(asked.wrong.is_none(), "--wrong is for --metric logit-difference");
    }
    ensure!(needs_answer || asked.answer.is_none(), "--answer is for metrics of one token; kl is of all");
    if !needs_answer {
        let reference = last_logits(opened, &pair.clean, edits)?;
        let metric = Metric::kl(&reference);
        return Ok(Question { name: metric.to_string(), metric });
    }
    let answer = match &asked.answer {
        Some(text) => opened.one_token("--answer", text)?,
        None => likeliest(opened, &pair.clean, edits, None)?,
    };
    let shown = |id: i64| -> Result<String> { Ok(format!("“{}”", opened.token_text(id)?)) };
    let metric = match asked.metric {
        MetricName::LogitDifference => {
            let wrong = match (&asked.wrong, &pair.corrupted) {
                (Some(text), _) => opened.one_token("--wrong", text)?,
                (None, Some(corrupted)) => likeliest(opened, corrupted, edits, Some(answer))?,
                (None, None) => {
                    bail!("--metric logit-difference needs --wrong TOKEN, or a --corrupted text to take it from")
                }
            };
            ensure!(
                wrong != answer,
                "answer and wrong token are both {}; name two with --answer and --wrong",
                shown(answer)?
            );
            let metric = Metric::logit_difference([answer], [wrong]);
            let name = format!("{metric} of {} and {}", shown(answer)?, shown(wrong)?);
            return Ok(Question { metric, name });
        }
        MetricName::Logit => Metric::logit([answer]),
        MetricName::Probability => Metric::probability([answer]),
        MetricName::LogProbability | MetricName::Kl => Metric::log_probability([answer]),
    };
    let name = format!("{metric} of {}", shown(answer)?);
    Ok(Question { metric, name })
}

/// The logits of the last token, `[1, vocabulary]`.
fn last_logits(opened: &Opened, ids: &[i64], edits: &Edits) -> Result<Tensor> {
    let mut run = Run::new(&opened.model, &["logits"])?;
    for (site, edit) in edits {
        run = run.edit(site.as_str(), edit.clone())?;
    }
    let input = Input::from_rows(&[ids])?;
    let logits = no_grad(|| run.run(&input))?;
    Ok(logits.get("logits")?.f_select(1, -1)?)
}

/// The token that is likeliest to come next, other than one.
fn likeliest(opened: &Opened, ids: &[i64], edits: &Edits, other_than: Option<i64>) -> Result<i64> {
    let (_, best) = last_logits(opened, ids, edits)?.f_topk(2, -1, true, true)?;
    let best = Vec::<i64>::try_from(&best.f_view([-1])?.f_to_device(Device::Cpu)?)?;
    Ok(best.into_iter().find(|id| Some(*id) != other_than).unwrap_or_default())
}
