//! Running a model over a corpus.

use std::{ops::Range, sync::mpsc, thread, time::Instant};

use lowmem::Dtype;
use models::{AsSite, Gate, Model, Site};
use partial::{Edit, Plan, Run};
use serde_json::{Map, Value, json};
use tch::{Device, Kind, no_grad};

use super::{
    corpus::{BYTES_A_TOKEN, Corpus, Span},
    error::{Error, Result},
    gather::{Captured, Layout},
    identity::{self, Identity},
    plan::{Planned, PlannedBatch, Planner},
    records::Reader,
    sink::{Batch, Piece, Sink},
};

/// What the output's own tensors are called.
const RESERVED: [&str; 3] = ["ids", "text", "position"];
/// Keys that are expected of a text, where a name's values are as many as these.
const EXPECTED_KEYS: i64 = 1024;

/// A model, a corpus and what is wanted of the two.
///
/// Texts run in batches of like length; one run of a batch serves all names. Reading and tokenising, computing, and what the sink does
/// happen at the same time.
///
/// ```
/// use transformer_utils::{corpus::{Corpus, Job, Safetensors}, prelude::*};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let model = Model::load("assets/tiny-gpt2")?;
/// # let folder = tempfile::tempdir()?;
/// # let out = folder.path().join("out");
/// let corpus = Corpus::from_texts(["Emma was very", "happy"]);
/// let job = Job::new(&model, corpus).names(["h.3", "h.5.mlp"])?;
/// let report = job.run(&mut Safetensors::create(&out)?)?;
/// assert_eq!(report.texts, 2);
/// assert!(out.join("index.jsonl").is_file());
/// # Ok(())
/// # }
/// ```
#[must_use = "a job does nothing until it is run"]
pub struct Job<'a> {
    model: &'a Model,
    corpus: Corpus,
    names: Vec<(String, Site)>,
    edits: Vec<(String, String, Edit)>,
    positions: Option<Range<usize>>,
    piece: Piece,
    store: Option<Dtype>,
    device: Device,
    batch_tokens: usize,
    file_mib: u64,
    unit_bytes: Option<u64>,
    progress: Option<Told<'a>>,
}

/// Who is told how far it is.
type Told<'a> = Box<dyn Fn(&Progress) + 'a>;

/// How far a job is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Units of the piece that are done, now or before.
    pub done: usize,
    /// Units of the piece.
    pub units: usize,
    /// Tokens run so far.
    pub tokens: usize,
}

/// What a job did.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// Units done.
    pub units_done: usize,
    /// Units that were there already.
    pub units_kept: usize,
    /// Texts in the units done.
    pub texts: usize,
    /// Tokens run in them.
    pub tokens: usize,
    /// Positions run in them, padding included.
    pub padded_tokens: usize,
    /// Seconds from the first unit's reading to the last one's end.
    pub seconds: f64,
    /// Seconds of them that the model ran.
    pub forward_seconds: f64,
    /// Blocks that ran.
    pub blocks_run: usize,
}

impl Report {
    /// The part of the positions that was padding.
    pub fn padding(&self) -> f64 {
        1.0 - self.tokens as f64 / (self.padded_tokens as f64).max(1.0)
    }

    /// Tokens a second, everything included.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.seconds.max(1e-9)
    }
}

/// What goes from the model to the sink.
enum Message {
    Batch(Captured),
    End(std::sync::Arc<super::Unit>),
}

impl<'a> Job<'a> {
    /// A job that asks for nothing yet; see [`Job::names`].
    pub fn new(model: &'a Model, corpus: Corpus) -> Self {
        Self {
            model,
            corpus,
            names: Vec::new(),
            edits: Vec::new(),
            positions: None,
            piece: Piece::WHOLE,
            store: Some(Dtype::Bf16),
            device: Device::Cpu,
            batch_tokens: batch_tokens(model),
            file_mib: 256,
            unit_bytes: None,
            progress: None,
        }
    }

    /// What to capture: names, or [`Site`]s, whose values are one for each token.
    ///
    /// # Errors
    ///
    /// Unknown names; [`Error::NotPerToken`], [`Error::Reserved`].
    pub fn names(mut self, names: impl IntoIterator<Item: AsSite>) -> Result<Self> {
        for name in names {
            let spelling = name.spelling();
            let site = self.model.sites().find(name.as_site()).map_err(partial::Error::from)?;
            if RESERVED.contains(&spelling.as_str()) {
                return Err(Error::Reserved { name: spelling });
            }
            Layout::of(self.model, &spelling, site)?;
            if self.names.iter().all(|(known, _)| *known != spelling) {
                self.names.push((spelling, site));
            }
        }
        Ok(self)
    }

    /// Changes the value at `name` in every run, as [`Run::edit`] does. `description` says what the edit is, in a way that differs for
    /// edits that differ: outputs are told apart by it. What people type is a description ([`crate::edits::EditText`]).
    pub fn edit(mut self, name: impl AsSite, edit: Edit, description: impl Into<String>) -> Self {
        self.edits.push((name.spelling(), description.into(), edit));
        self
    }

    /// Keeps the values at these positions of each text only, where it has them. The model still reads all.
    pub fn positions(mut self, positions: Range<usize>) -> Self {
        self.positions = Some(positions);
        self
    }

    /// Does one piece of the job only.
    pub fn piece(mut self, piece: Piece) -> Self {
        self.piece = piece;
        self
    }

    /// The dtype of the values; bf16 by default, `None` for that of the run. Whole numbers stay such.
    pub fn store(mut self, store: impl Into<Option<Dtype>>) -> Self {
        self.store = store.into();
        self
    }

    /// Where a sink gets the values; on the CPU by default.
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// Most positions in a batch, padding included; by default 4096, on a CPU fewer for a model that is so wide that values of a layer
    /// would take more than 32 MiB (2688 for GPT-2's 124M in f32). A longer text is a batch by itself.
    pub fn batch_tokens(mut self, tokens: usize) -> Self {
        self.batch_tokens = tokens;
        self
    }

    /// About how many MiB of values a unit makes; 256 by default. Units are cut by bytes of text before anything is tokenised, so
    /// that pieces need to read no more than their own.
    pub fn file_mib(mut self, mib: u64) -> Self {
        self.file_mib = mib;
        self
    }

    /// How many bytes of text a unit has, whatever its values take; for sinks that keep no values.
    pub fn unit_bytes(mut self, bytes: u64) -> Self {
        self.unit_bytes = Some(bytes);
        self
    }

    /// Who is told how far the job is, after every batch.
    pub fn progress(mut self, progress: impl Fn(&Progress) + 'a) -> Self {
        self.progress = Some(Box::new(progress));
        self
    }

    /// Does what is not done yet. The model runs on the calling thread, the sink on another.
    ///
    /// # Errors
    ///
    /// What the corpus, the model or the sink says. Units that were finished before stay finished.
    pub fn run<S: Sink + ?Sized>(&self, sink: &mut S) -> Result<Report> {
        let prepared = self.prepare()?;
        let todo = self.todo(&prepared, sink)?;
        let report = thread::scope(|scope| {
            let (sender, receiver) = mpsc::sync_channel::<Message>(2);
            let (layouts, kind, device) = (&prepared.layouts, self.store.map(Dtype::kind), self.device);
            let borrowed = &mut *sink;
            let writer = thread::Builder::new().name("corpus writer".into()).spawn_scoped(scope, move || {
                no_grad(|| receiver.into_iter().try_for_each(|message| put(message, borrowed, layouts, kind, device)))
            });
            let writer = writer.map_err(Error::io("start", "a thread"))?;
            // Whoever does not listen any more says why below.
            let sent = self.compute(&prepared, todo, |message| sender.send(message).is_ok().then_some(Ok(())));
            drop(sender);
            writer.join().map_err(|_| Error::Thread { doing: "writes" })??;
            sent
        })?;
        sink.end()?;
        Ok(report)
    }

    /// Hands every batch of the piece to `take`, on the calling thread: to train on, for one.
    ///
    /// ```
    /// use transformer_utils::{corpus::{Corpus, Job}, prelude::*};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let model = Model::load("assets/tiny-gpt2")?;
    /// let mut rows = 0;
    /// let job = Job::new(&model, Corpus::from_texts(["Emma was very", "happy"])).names(["h.3"])?.store(None);
    /// let report = job.for_each(|batch| {
    ///     rows += batch.get("h.3")?.size()[0]; // [tokens, d_model]
    ///     Ok(())
    /// })?;
    /// assert_eq!(rows, report.tokens as i64);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// What the corpus or the model says, and what `take` does.
    pub fn for_each(&self, mut take: impl FnMut(Batch) -> Result<()>) -> Result<Report> {
        let prepared = self.prepare()?;
        let todo = (0..prepared.spans.len()).filter(|&unit| self.piece.has(unit)).collect();
        let kind = self.store.map(Dtype::kind);
        self.compute(&prepared, Todo { units: todo, kept: 0 }, |message| match message {
            Message::Batch(captured) => Some(captured.gather(&prepared.layouts, kind, self.device).and_then(&mut take)),
            Message::End(_) => Some(Ok(())),
        })
    }

    /// Everything that is known before anything runs.
    fn prepare(&self) -> Result<Prepared<'_>> {
        if self.batch_tokens == 0 || self.file_mib == 0 {
            let problem = "must be at least 1".into();
            return Err(Error::Option { option: "batch tokens and file size", problem });
        }
        let spellings: Vec<&str> = self.names.iter().map(|(name, _)| name.as_str()).collect();
        let plan = Plan::new(self.model, &spellings)?;
        let layouts: Vec<Layout> =
            self.names.iter().map(|(name, site)| Layout::of(self.model, name, *site)).collect::<Result<_>>()?;
        let positions = self.positions.clone();
        let planner = Planner::new(self.model, &self.corpus.options, self.batch_tokens, positions)?;
        let unit_bytes = self.unit_bytes.unwrap_or_else(|| self.bytes_of_text(&layouts));
        let spans = self.corpus.units(unit_bytes)?;
        if spans.is_empty() {
            let place = self.corpus.files.first().map_or_else(|| "memory".to_owned(), |file| file.place.to_string());
            return Err(Error::NoTexts { place, expected: super::format::ENDINGS.to_owned() });
        }
        let mut run = Run::planned(self.model, plan.clone());
        for (name, _, edit) in &self.edits {
            run = run.edit(name, edit.clone())?;
        }
        let identity = self.identity(&plan, &layouts, unit_bytes, spans.len())?;
        Ok(Prepared { plan, layouts, planner, spans, run, identity })
    }

    /// The units of the piece that the sink does not have.
    fn todo<S: Sink + ?Sized>(&self, prepared: &Prepared, sink: &mut S) -> Result<Todo> {
        sink.begin(&prepared.identity, self.piece)?;
        let own: Vec<usize> = (0..prepared.spans.len()).filter(|&unit| self.piece.has(unit)).collect();
        let mut todo = Todo { units: Vec::new(), kept: 0 };
        for unit in own {
            if sink.is_done(unit)? {
                todo.kept += 1;
            } else {
                todo.units.push(unit);
            }
        }
        Ok(todo)
    }

    /// How many bytes of text make values of the size that files have.
    fn bytes_of_text(&self, layouts: &[Layout]) -> u64 {
        let keys = self.model.architecture().context.min(EXPECTED_KEYS);
        let values =
            |layout: &Layout| layout.shape.iter().map(|&size| if size < 0 { keys } else { size }).product::<i64>();
        let values = layouts.iter().map(values).sum::<i64>().max(1) as u64;
        let width = self.store.unwrap_or_else(|| self.model.parts().dtype()).bytes();
        ((self.file_mib << 20) / (values * width + 16) * BYTES_A_TOKEN).max(BYTES_A_TOKEN)
    }

    fn identity(&self, plan: &Plan, layouts: &[Layout], unit_bytes: u64, units: usize) -> Result<Identity> {
        let names: Vec<String> = self.names.iter().map(|(name, _)| name.clone()).collect();
        let edits: Vec<&str> = self.edits.iter().map(|(_, description, _)| description.as_str()).collect();
        let architecture = format!("{:?}", self.model.architecture());
        let numerics = format!("{:?}", self.model.numerics());
        let mut fields = Map::new();
        let mut put = |field: &str, value: Value| fields.insert(field.to_owned(), value);
        put("format", 2.into());
        put("model", self.model.name().into());
        put("architecture", identity::hash(architecture.bytes()).into());
        put("dtype", self.model.parts().dtype().to_string().into());
        put("numerics", identity::hash(numerics.bytes()).into());
        put("names", names.clone().into());
        // Which weights there are follows from the names, so whoever asks for others is told of these first.
        put("weights", self.sample_weights(plan)?.into());
        put("edits", edits.into());
        put("positions", self.positions.as_ref().map(|kept| json!([kept.start, kept.end])).unwrap_or_default());
        put("store", self.store.map(|store| store.to_string()).into());
        put("batch_tokens", self.batch_tokens.into());
        if self.model.parts().dtype() != Dtype::F32 {
            // Another build's batches of these dtypes may have been others, and other batches other bits.
            put("batch_sizes", "few".into());
        }
        put("unit_bytes", unit_bytes.into());
        put("units", units.into());
        if let Value::Object(corpus) = self.corpus.identity() {
            fields.extend(corpus);
        }
        let shapes = layouts.iter().map(|layout| layout.shape.clone()).collect();
        Ok(Identity { fields, units, names, shapes })
    }

    /// A hash of some numbers of every tensor in the first and the last part that are needed: it differs for checkpoints of one
    /// training, whose shapes do not.
    fn sample_weights(&self, plan: &Plan) -> Result<String> {
        let parts = self.model.parts_needed(plan.deepest());
        let mut bytes = Vec::new();
        for part in [Some(parts.start), parts.last()].into_iter().flatten() {
            let tensors =
                self.model.parts().get(part, None).map_err(models::Error::from).map_err(partial::Error::from)?;
            for tensor in tensors {
                let sample = || {
                    let mut row = tensor.f_detach()?;
                    while row.dim() > 1 {
                        row = row.f_select(0, 0)?;
                    }
                    let row = row.f_reshape([-1])?;
                    let row = row.f_narrow(0, 0, row.size().first().copied().unwrap_or(0).min(256))?;
                    Vec::<f64>::try_from(row.f_to_kind(Kind::Double)?.f_to_device(Device::Cpu)?)
                };
                let numbers = sample().map_err(Error::torch("reading weights"))?;
                bytes.extend(numbers.into_iter().flat_map(f64::to_le_bytes));
            }
        }
        Ok(identity::hash(bytes))
    }

    /// Runs the model over units. `send` gives `None` when nobody wants more.
    fn compute(
        &self,
        prepared: &Prepared,
        todo: Todo,
        mut send: impl FnMut(Message) -> Option<Result<()>>,
    ) -> Result<Report> {
        let Prepared { plan, planner, spans, run, .. } = prepared;
        let mut report = Report { units_kept: todo.kept, ..Report::default() };
        let mut progress = Progress { done: todo.kept, units: todo.kept + todo.units.len(), tokens: 0 };
        self.tell(&progress);
        if todo.units.is_empty() {
            return Ok(report);
        }
        plan.preload(self.model)?;
        report.blocks_run = plan.deepest().blocks_needed(self.model.config().layers());
        let start = Instant::now();
        let corpus = &self.corpus;
        thread::scope(|scope| {
            let (sender, receiver) = mpsc::sync_channel::<Result<Planned>>(1);
            let units = todo.units;
            let reader = thread::Builder::new().name("corpus reader".into()).spawn_scoped(scope, move || {
                let mut reader = Reader::new(corpus);
                for unit in units {
                    let planned = read(&mut reader, planner, unit, spans);
                    let failed = planned.is_err();
                    if sender.send(planned).is_err() || failed {
                        break;
                    }
                }
            });
            let reader = reader.map_err(Error::io("start", "a thread"))?;
            let mut work = || -> Result<()> {
                for planned in &receiver {
                    let Planned { unit, batches } = planned?;
                    for PlannedBatch { rows, length } in batches {
                        let begun = Instant::now();
                        let ids: Vec<&[i64]> = rows.iter().map(|row| row.ids.as_slice()).collect();
                        let failed = |source| {
                            let input = unit.input.as_deref().unwrap_or("the corpus");
                            Error::Batch { place: format!("{input}, unit {}", unit.number), source }
                        };
                        let input = models::Input::padded_to(&ids, length).map_err(|error| failed(error.into()))?;
                        let activations = no_grad(|| run.run(&input)).map_err(failed)?;
                        report.forward_seconds += begun.elapsed().as_secs_f64();
                        report.tokens += rows.iter().map(|row| row.ids.len()).sum::<usize>();
                        report.padded_tokens += rows.len() * length;
                        let tensors = activations.into_tensors();
                        let captured = Captured { unit: std::sync::Arc::clone(&unit), rows, tensors };
                        match send(Message::Batch(captured)) {
                            Some(sent) => sent?,
                            None => return Ok(()),
                        }
                        progress.tokens = report.tokens;
                        self.tell(&progress);
                    }
                    report.texts += unit.texts.len();
                    match send(Message::End(unit)) {
                        Some(sent) => sent?,
                        None => return Ok(()),
                    }
                    report.units_done += 1;
                    progress.done += 1;
                    self.tell(&progress);
                }
                Ok(())
            };
            let worked = work();
            // The reader must not wait for somebody who has given up.
            drop(receiver);
            let joined = reader.join().map_err(|_| Error::Thread { doing: "reads" });
            worked.and(joined)
        })?;
        report.seconds = start.elapsed().as_secs_f64();
        Ok(report)
    }

    fn tell(&self, progress: &Progress) {
        if let Some(told) = &self.progress {
            told(progress);
        }
    }
}

/// A job that can begin.
struct Prepared<'a> {
    plan: Plan,
    layouts: Vec<Layout>,
    planner: Planner<'a>,
    spans: Vec<Span>,
    run: Run<'a>,
    identity: Identity,
}

/// The units that are left to do, and how many are not.
struct Todo {
    units: Vec<usize>,
    kept: usize,
}

fn read(reader: &mut Reader, planner: &Planner, unit: usize, spans: &[Span]) -> Result<Planned> {
    let Some(span) = spans.get(unit) else { return Err(Error::Thread { doing: "reads" }) };
    let records = reader.read(span)?;
    planner.plan(unit, records, |at| reader.place(span, at))
}

fn put<S: Sink + ?Sized>(
    message: Message,
    sink: &mut S,
    layouts: &[Layout],
    kind: Option<Kind>,
    device: Device,
) -> Result<()> {
    match message {
        Message::Batch(captured) => sink.take(captured.gather(layouts, kind, device)?),
        Message::End(unit) => sink.finish(&unit),
    }
}

/// Positions of a batch.
const MOST_BATCH_TOKENS: usize = 4096;
/// Bytes of a tensor from which glibc asks the system for them each time, which gives fresh pages, zeroed: batches with such tensors take a
/// quarter longer.
const FRESH_BYTES: usize = 32 << 20;

/// How many positions of a batch leave every tensor of a layer below what comes fresh each time.
fn batch_tokens(model: &Model) -> usize {
    if model.parts().device() != Device::Cpu {
        return MOST_BATCH_TOKENS;
    }
    let widths = model.architecture().layers.iter().map(|layer| {
        let joined = matches!(layer.mlp.gate, Gate::SideBySide | Gate::Interleaved);
        let attention = layer.attention.query_width() + 2 * layer.attention.key_width();
        attention.max(layer.mlp.d_mlp * if joined { 2 } else { 1 })
    });
    let widest = widths.max().map_or(1, |width| usize::try_from(width).unwrap_or(1).max(1));
    let bytes = widest * model.parts().dtype().bytes() as usize;
    (FRESH_BYTES / bytes / 128 * 128).clamp(512, MOST_BATCH_TOKENS)
}
