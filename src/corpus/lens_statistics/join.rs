//! From the sums of units to what layers believe on average.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::sums::{BINS, Bin, Sums};
use crate::corpus::{
    error::{Error, Result},
    output::Output,
    place::Place,
    tensor_file,
};

/// The numbers.
const SUMMARY: &str = "lens.json";
/// What is written of all units.
pub(in crate::corpus) const FILES: [&str; 3] = [SUMMARY, "lens-nats.svg", "lens-parts.svg"];
/// What is written here, for those who read it.
const SCHEMA: u32 = 1;

/// What `lens.json` has: the layers of a model over a corpus.
///
/// Means are over all tokens whose values are kept, or, where a next token is needed, over those that have one in their text and its
/// row; `None` (`null`) where there is no such token, or no number. Logarithms are natural: nats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LensSummary {
    /// 1.
    pub schema: u32,
    /// The model's name.
    pub model: String,
    /// The dtype of the weights that it ran in: `f32`, `bf16` or `f16`.
    pub dtype: String,
    /// What stood before the final norm: `tuned`, or `jacobian`; not there for the logit lens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lens: Option<String>,
    /// Tokens.
    pub tokens: i64,
    /// Tokens that have a next one.
    pub next_tokens: i64,
    /// In the order in which they were asked for.
    pub layers: Vec<LayerStatistics>,
}

/// What one residual stream, decoded by the final norm and the unembedding, says of the tokens of a corpus.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LayerStatistics {
    /// The stream's name, as it was asked for.
    pub name: String,
    /// Mean KL(final || layer), in nats.
    pub kl: Option<f64>,
    /// Mean entropy of the layer's distribution, in nats.
    pub entropy: Option<f64>,
    /// The part of the tokens, in 0..=1, where layer and model have the same likeliest next token.
    pub top1_agreement: Option<f64>,
    /// Mean logarithm of the probability of the next token, in nats: minus the cross entropy.
    pub next_log_probability: Option<f64>,
    /// The part of the tokens, in 0..=1, whose next token is the layer's likeliest.
    pub accuracy: Option<f64>,
    /// Mean probability of the layer's likeliest next token, over the tokens that have a next one.
    pub confidence: Option<f64>,
    /// The expected calibration error, in 0..=1: the mean over the bins, weighted by their tokens, of the distance between confidence
    /// and accuracy (Guo et al., "On Calibration of Modern Neural Networks", 2017, equation 3).
    pub calibration_error: Option<f64>,
    /// Ten bins of confidence.
    pub calibration: Vec<CalibrationBin>,
}

/// The tokens whose likeliest next one has a probability above `above` and not above `up_to`; of the first bin also zero.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CalibrationBin {
    /// The lower end.
    pub above: f64,
    /// The upper end.
    pub up_to: f64,
    /// How many.
    pub tokens: i64,
    /// Their mean probability, in 0..=1.
    pub confidence: Option<f64>,
    /// The part of them, in 0..=1, whose next token is the likeliest.
    pub accuracy: Option<f64>,
}

/// A mean, where there is one.
fn mean(sum: f64, of: i64) -> Option<f64> {
    Some(sum / of as f64).filter(|mean| mean.is_finite())
}

impl LayerStatistics {
    fn new(name: &str, sums: &Sums) -> Self {
        let mut all = Bin::default();
        let mut apart = 0.0;
        for bin in &sums.bins {
            all.tokens += bin.tokens;
            all.right += bin.right;
            all.confidence += bin.confidence;
            // The bin's weight is its tokens, which cancel those that its means divide by.
            apart += (bin.right as f64 - bin.confidence).abs();
        }
        let bin = |(place, bin): (usize, &Bin)| CalibrationBin {
            above: place as f64 / BINS as f64,
            up_to: (place + 1) as f64 / BINS as f64,
            tokens: bin.tokens,
            confidence: mean(bin.confidence, bin.tokens),
            accuracy: mean(bin.right as f64, bin.tokens),
        };
        Self {
            name: name.to_owned(),
            kl: mean(sums.kl, sums.tokens),
            entropy: mean(sums.entropy, sums.tokens),
            top1_agreement: mean(sums.agreed as f64, sums.tokens),
            next_log_probability: mean(sums.log_probability, all.tokens),
            accuracy: mean(all.right as f64, all.tokens),
            confidence: mean(all.confidence, all.tokens),
            calibration_error: mean(apart, all.tokens),
            calibration: sums.bins.iter().enumerate().map(bin).collect(),
        }
    }
}

impl LensSummary {
    /// Reads what a whole job wrote: `lens.json` in its folder or address.
    ///
    /// # Errors
    ///
    /// [`Error::NoJob`] where it is not there, [`Error::Object`] where it is something else, [`Error::Io`].
    pub fn read(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = Place::parse(folder.as_ref())?;
        let object = folder.join(SUMMARY);
        let bytes = object.read()?.ok_or_else(|| Error::NoJob { place: folder.to_string() })?;
        let problem = |error: serde_json::Error| Error::Object {
            place: object.to_string(),
            problem: format!("is no summary ({error})"),
        };
        serde_json::from_slice(&bytes).map_err(problem)
    }

    /// The charts over the layers, as [`lens::picture::curves_svg`] and `curves_png` draw them: what is in nats (KL, entropy, cross
    /// entropy), and what is a part of one (agreement, accuracy, confidence, calibration error).
    #[cfg(feature = "plot")]
    pub fn curves(&self) -> [lens::picture::Curves; 2] {
        type Pick = fn(&LayerStatistics) -> Option<f64>;
        let lens = self.lens.as_ref().map_or_else(String::new, |lens| format!(", {lens} lens"));
        let title = format!("{} ({}){lens}, {} tokens", self.model, self.dtype, self.tokens);
        let chart = |heading: &str, curves: &[(&str, Pick)]| lens::picture::Curves {
            title: title.clone(),
            heading: heading.to_owned(),
            logarithmic: false,
            rows: self.layers.iter().map(|layer| layer.name.clone()).collect(),
            curves: curves
                .iter()
                .map(|(name, pick)| {
                    let values = self.layers.iter().map(|layer| pick(layer).unwrap_or(f64::NAN));
                    ((*name).to_owned(), values.collect())
                })
                .collect(),
        };
        let nats: [(&str, Pick); 3] = [
            ("entropy", |layer| layer.entropy),
            ("KL(final ‖ layer)", |layer| layer.kl),
            ("cross entropy", |layer| layer.next_log_probability.map(|log| -log)),
        ];
        let parts: [(&str, Pick); 4] = [
            ("confidence", |layer| layer.confidence),
            ("accuracy", |layer| layer.accuracy),
            ("calibration error", |layer| layer.calibration_error),
            ("top-1 agreement", |layer| layer.top1_agreement),
        ];
        [chart("mean, nats", &nats), chart("part of the tokens", &parts)]
    }
}

/// Puts the sums of units together, in their order, and writes what follows from them. `job` is what `job.json` says.
pub(in crate::corpus) fn join(folder: &Place, job: &Value, names: &[String], units: &[(usize, u64)]) -> Result<()> {
    let mut totals = vec![Sums::default(); names.len()];
    for &(unit, bytes) in units {
        let object = folder.join(&Output::Lens.object_name(unit));
        let tensors = tensor_file::decode(&object, bytes)?;
        for (name, total) in names.iter().zip(&mut totals) {
            let problem = || Error::Object { place: object.to_string(), problem: format!("lacks the sums of {name}") };
            total.join(&Sums::read(name, &tensors).ok_or_else(problem)?);
        }
    }
    let field = |name: &str| job.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let first = totals.first().cloned().unwrap_or_default();
    let summary = LensSummary {
        schema: SCHEMA,
        model: field("model"),
        dtype: field("dtype"),
        lens: job.get(super::LENS).and_then(Value::as_str).map(str::to_owned),
        tokens: first.tokens,
        next_tokens: first.bins.iter().map(|bin| bin.tokens).sum(),
        layers: names.iter().zip(&totals).map(|(name, sums)| LayerStatistics::new(name, sums)).collect(),
    };
    #[cfg(feature = "plot")]
    for (chart, name) in summary.curves().iter().zip(FILES.iter().skip(1)) {
        let object = folder.join(name);
        let svg = lens::picture::curves_svg(chart, &lens::picture::Style::default())
            .map_err(|error| Error::Chart { place: object.to_string(), problem: error.to_string() })?;
        object.write(vec![svg.into_bytes()])?;
    }
    let failed = |error: serde_json::Error| Error::io("write", SUMMARY)(error.into());
    let json = serde_json::to_string_pretty(&summary).map_err(failed)?;
    folder.join(SUMMARY).write(vec![format!("{json}\n").into_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_has_the_fields_that_are_documented() {
        let fields = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let layer = LayerStatistics::new("h.0", &Sums { tokens: 1, kl: 0.5, ..Sums::default() });
        let (model, dtype) = ("m".into(), "f32".into());
        let layers = vec![layer];
        let lens = Some("tuned".to_owned());
        let summary = LensSummary { schema: SCHEMA, model, dtype, lens, tokens: 1, next_tokens: 0, layers };
        let json = serde_json::to_value(&summary).unwrap();
        let top = ["schema", "model", "dtype", "lens", "tokens", "next_tokens", "layers"];
        assert_eq!(fields(&json), top);
        let layer = &json["layers"][0];
        let of_layers = [
            "name",
            "kl",
            "entropy",
            "top1_agreement",
            "next_log_probability",
            "accuracy",
            "confidence",
            "calibration_error",
            "calibration",
        ];
        assert_eq!(fields(layer), of_layers);
        let of_bins = ["above", "up_to", "tokens", "confidence", "accuracy"];
        assert_eq!(fields(&layer["calibration"][0]), of_bins);
        assert_eq!(layer["calibration"].as_array().unwrap().len(), BINS);
        // A number, and null where there is none.
        assert_eq!((&json["schema"], &layer["kl"], &layer["accuracy"]), (&1.into(), &0.5.into(), &Value::Null));
        assert_eq!(serde_json::from_value::<LensSummary>(json.clone()).unwrap(), summary);
        let documented = include_str!("../../../docs/corpora.md");
        let (_, documented) = documented.split_once("`--format lens` is").unwrap();
        let (documented, _) = documented.split_once("\n## ").unwrap();
        for field in top.iter().chain(&of_layers).chain(&of_bins) {
            assert!(documented.contains(&format!("`{field}`")), "{field} is not documented");
        }
    }

    #[test]
    fn the_calibration_error_is_the_weighted_distance() {
        let mut sums = Sums { tokens: 10, agreed: 5, ..Sums::default() };
        // Six of eight right where 0.9 was said, one of two where 0.2 was.
        sums.bins[8] = Bin { tokens: 8, right: 6, confidence: 7.2 };
        sums.bins[1] = Bin { tokens: 2, right: 1, confidence: 0.4 };
        let layer = LayerStatistics::new("h.0", &sums);
        let expected = 0.8 * (0.9 - 0.75) + 0.2 * (0.5 - 0.2);
        assert!((layer.calibration_error.unwrap() - expected).abs() < 1e-12);
        assert_eq!((layer.accuracy, layer.top1_agreement), (Some(0.7), Some(0.5)));
        assert_eq!(layer.calibration[0].accuracy, None);
        assert_eq!(LayerStatistics::new("h.0", &Sums::default()).kl, None);
    }
}
