//! A corpus: everything between texts and files, beside nothing but the forwards.

use anyhow::Context;
use transformer_utils::{
    corpus::{Corpus, Job, Report, Safetensors},
    lowmem::Dtype,
    partial::Run,
};

use super::{Bench, Figure, Input, Result, peak_private, timed, turns};

/// Texts of the corpus. `benches/peers/corpus.py` makes the same ones.
const TEXTS: i64 = 96;

impl Bench {
    /// Three names of every token of some texts, in bf16, into files; and the same batches run and forgotten.
    pub(super) fn corpus(&self) -> Result<Vec<Figure>> {
        let vocabulary = self.model.architecture().vocabulary;
        let context = self.model.architecture().context;
        let text = |number: i64| -> Vec<i64> {
            let length = (16 + number * number * 37 % 385).min(context);
            (0..length).map(|at| (1000 + 23 * at + 7 * number) % vocabulary).collect()
        };
        let last = self.model.config().layers() - 1;
        let names = [format!("h.{}", last / 4), format!("h.{}", last / 2), format!("h.{last}.mlp")];
        let job = || -> Result<Job> {
            let corpus = Corpus::from_ids((0..TEXTS).map(text));
            Ok(Job::new(&self.model, corpus).names(&names)?.store(Dtype::Bf16))
        };
        let mut batches = Vec::new();
        job()?.for_each(|batch| {
            let mut rows: Vec<Vec<i64>> = Vec::new();
            let mut previous = None;
            for (id, text) in batch.ids().iter().zip(batch.texts()) {
                if previous.replace(*text) != Some(*text) {
                    rows.push(Vec::new());
                }
                rows.last_mut().into_iter().for_each(|row| row.push(*id));
            }
            batches.push(rows);
            Ok(())
        })?;
        let folder = tempfile::tempdir()?;
        let whole = || -> Result<Report> {
            let out = folder.path().join("activations");
            let report = job()?.run(&mut Safetensors::create(&out)?)?;
            std::fs::remove_dir_all(&out).with_context(|| out.display().to_string())?;
            Ok(report)
        };
        let run = Run::new(&self.model, &names)?;
        let bare = || -> Result<()> {
            batches.iter().try_for_each(|rows| run.run(&Input::padded(rows)?).map(drop).map_err(Into::into))
        };
        let [of_whole, of_bare] = turns(self.repeats, [&|| timed(whole), &|| timed(bare)])?;
        let (peak, report) = peak_private(whole)?;
        Ok(vec![
            Figure::new("corpus_whole", "s", of_whole),
            Figure::new("corpus_bare", "s", of_bare),
            Figure::one("corpus_tokens", "count", report.tokens as f64),
            Figure::one("corpus_padding", "count", report.padding()),
            Figure::one("corpus_peak", "MiB", peak),
        ])
    }
}
