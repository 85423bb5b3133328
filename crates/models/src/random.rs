//! Random numbers, and the weights of a fresh model made of them.
//!
//! Number `i` of a sequence is the `i`-th output of SplitMix64 (Steele et al., 2014), which can be computed without those
//! before it. Normal numbers come in pairs from two of them (Box and Muller, 1958):
//!
//! ```text
//! r = sqrt(-2 ln(u)), a = 2 pi v        u in (0, 1], v in [0, 1)
//! normal[2 k] = r cos(a), normal[2 k + 1] = r sin(a)
//! ```

use std::{collections::HashMap, f64::consts::TAU, num::NonZero, thread};

use tch::{Device, Kind, TchError, Tensor};

use crate::{Config, Error, Initial, Model, Result};

/// What SplitMix64 adds from one number to the next.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// A sequence of random numbers in which each depends on the seed, the name and its index alone: not on the order of
/// asking, on threads, on the machine or on libtorch's generator.
///
/// ```
/// let weights = models::Random::named(7, "transformer.wte.weight");
/// let (mut whole, mut part) = ([0.0; 8], [0.0; 3]);
/// weights.fill_normal(0.0, 0.02, 0, &mut whole);
/// weights.fill_normal(0.0, 0.02, 5, &mut part);
/// assert_eq!(part, whole[5..]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Random {
    state: u64,
}

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The sequence that a seed has for a name, such as a tensor's.
    pub fn named(seed: u64, name: &str) -> Self {
        name.bytes().fold(Self::new(seed), |random, byte| random.branch(byte.into()))
    }

    /// Another sequence for every number: that of a row, of a step.
    pub fn branch(self, number: u64) -> Self {
        Self { state: self.bits(0).wrapping_add(number) }
    }

    /// Number `index`, any of the 64-bit integers.
    pub fn bits(self, index: u64) -> u64 {
        let mut x = self.state.wrapping_add(index.wrapping_add(1).wrapping_mul(STEP));
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    /// Number `index`, uniform in `0..1`.
    pub fn uniform(self, index: u64) -> f64 {
        (self.bits(index) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Numbers `first..` of a normal distribution, as many as `values` holds, computed in f64 and rounded to f32.
    pub fn fill_normal(self, mean: f64, deviation: f64, first: u64, values: &mut [f32]) {
        let scaled = |normal: f64| (mean + deviation * normal) as f32;
        // A stretch may begin or end within a pair.
        let within = values.len().min((first % 2) as usize);
        let (begun, whole) = values.split_at_mut(within);
        let mut pair = first & !1;
        for value in begun {
            *value = scaled(self.normal_pair(pair)[1]);
            pair = pair.wrapping_add(2);
        }
        for values in whole.chunks_mut(2) {
            for (value, normal) in values.iter_mut().zip(self.normal_pair(pair)) {
                *value = scaled(normal);
            }
            pair = pair.wrapping_add(2);
        }
    }

    /// Normal numbers `index` and `index + 1`, of mean 0 and deviation 1, for an even `index`.
    fn normal_pair(self, index: u64) -> [f64; 2] {
        let radius = (-2.0 * libm::log(1.0 - self.uniform(index))).sqrt();
        let (sine, cosine) = libm::sincos(TAU * self.uniform(index.wrapping_add(1)));
        [radius * cosine, radius * sine]
    }
}

/// Elements that one thread makes at a time.
const STRETCH: usize = 1 << 18;

/// Weights of a fresh model, by name.
pub(crate) fn tensors(config: &Config, seed: u64) -> Result<HashMap<String, Tensor>> {
    let mut tensors = HashMap::new();
    for (name, shape) in Model::tensor_shapes(config)? {
        let tensor = tensor(config, seed, &name, &shape).map_err(Error::torch(&name))?;
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

fn tensor(config: &Config, seed: u64, name: &str, shape: &[i64]) -> Result<Tensor, TchError> {
    let options = (Kind::Float, Device::Cpu);
    let deviation = match config.initial(name, shape) {
        Initial::Bias => return Tensor::f_zeros(shape, options),
        Initial::Norm { value } => return Tensor::f_full(shape, value, options),
        Initial::Normal { deviation } => deviation,
    };
    let tensor = Tensor::f_empty(shape, options)?;
    let flat = tensor.f_view([-1])?;
    let elements = tensor.numel();
    let random = Random::named(seed, name);
    // A bounded buffer, so that the weights never exist twice.
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(elements.div_ceil(STRETCH)).max(1);
    let mut buffer = vec![0.0_f32; elements.min(threads * STRETCH)];
    let mut first = 0;
    while first < elements {
        buffer.truncate(elements - first);
        let fill = |(number, values): (usize, &mut [f32])| {
            random.fill_normal(0.0, deviation, (first + number * STRETCH) as u64, values);
        };
        let stretches = buffer.chunks_mut(STRETCH).enumerate();
        if stretches.len() > 1 {
            thread::scope(|scope| stretches.for_each(|stretch| drop(scope.spawn(move || fill(stretch)))));
        } else {
            stretches.for_each(fill);
        }
        flat.f_narrow(0, first as i64, buffer.len() as i64)?.f_copy_(&Tensor::f_from_slice(&buffer)?)?;
        first += buffer.len();
    }
    Ok(tensor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(random: Random, first: u64, count: usize) -> Vec<f32> {
        let mut values = vec![0.0; count];
        random.fill_normal(0.0, 1.0, first, &mut values);
        values
    }

    fn config() -> Config {
        // The token embedding is of more than one stretch.
        let sizes = r#""n_layer": 2, "n_head": 2, "n_embd": 96, "vocab_size": 3000, "n_positions": 20"#;
        Config::from_json(&format!(r#"{{"model_type": "gpt2", {sizes}}}"#)).unwrap()
    }

    /// The bits of every weight, by name.
    fn bits(seed: u64) -> Vec<(String, Vec<u32>)> {
        let bits = |tensor: Tensor| {
            let values = Vec::<f32>::try_from(tensor.flatten(0, -1)).unwrap();
            values.into_iter().map(f32::to_bits).collect()
        };
        let tensors = tensors(&config(), seed).unwrap().into_iter();
        let mut all: Vec<(String, Vec<u32>)> = tensors.map(|(name, tensor)| (name, bits(tensor))).collect();
        all.sort();
        all
    }

    #[test]
    fn first_numbers_are_these_on_every_machine() {
        // Steele and Lea's own test values for the seed 1234567.
        let splitmix = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431];
        assert_eq!([0, 1, 2, 3].map(|index| Random::new(1234567).bits(index)), splitmix);
        let found = normal(Random::named(7, "transformer.wte.weight"), 0, 6);
        assert_eq!(found.iter().map(|value| value.to_bits()).collect::<Vec<_>>(), PINNED, "{found:?}");
    }

    const PINNED: [u32; 6] = [3204331303, 3203945240, 1052890667, 3205678451, 3223099747, 1065626526];

    #[test]
    fn a_number_depends_on_seed_name_and_index_alone() {
        let random = Random::named(3, "h.0.mlp.c_fc.weight");
        let whole = normal(random, 0, 101);
        for (first, count) in [(0, 1), (1, 1), (1, 2), (7, 0), (7, 94), (50, 51), (99, 2)] {
            assert_eq!(normal(random, first, count), whole[first as usize..][..count], "{first} {count}");
        }
        for other in [Random::named(4, "h.0.mlp.c_fc.weight"), Random::named(3, "h.1.mlp.c_fc.weight"), Random::new(3)]
        {
            assert_ne!(normal(other, 0, 101), whole);
        }
        assert_ne!(Random::named(0, "ab"), Random::named(0, "ba"));
    }

    #[test]
    fn numbers_are_normal() {
        let values = normal(Random::named(1, "moments"), 0, 1 << 20);
        let moment =
            |power: i32| values.iter().map(|&value| f64::from(value).powi(power)).sum::<f64>() / values.len() as f64;
        // Five standard errors of each.
        for (power, expected, allowed) in [(1, 0.0, 0.005), (2, 1.0, 0.007), (3, 0.0, 0.019), (4, 3.0, 0.048)] {
            assert!((moment(power) - expected).abs() < allowed, "moment {power}: {}", moment(power));
        }
        let beyond =
            |limit: f32| values.iter().filter(|value| value.abs() > limit).count() as f64 / values.len() as f64;
        for (limit, expected) in [(1.0, 0.317_311), (2.0, 0.045_500), (3.0, 0.002_700), (4.0, 0.000_063)] {
            let error = (expected / values.len() as f64).sqrt();
            assert!((beyond(limit) - expected).abs() < 5.0 * error, "beyond {limit}: {}", beyond(limit));
        }
        // Neighbours, those of a pair among them, say nothing about each other.
        let product: f64 = values.windows(2).map(|two| f64::from(two[0] * two[1])).sum();
        assert!((product / values.len() as f64).abs() < 0.005);
    }

    #[test]
    fn a_seed_gives_its_weights_while_other_threads_draw_theirs() {
        let expected: Vec<_> = (5..9).map(bits).collect();
        let together = std::sync::Barrier::new(4);
        let draw = &|seed| {
            together.wait();
            bits(seed)
        };
        let found: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (5..9).map(|seed| scope.spawn(move || draw(seed))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(found == expected);
        assert_ne!(expected[0], expected[1]);
    }

    #[test]
    fn a_tensor_s_values_do_not_depend_on_its_shape() {
        let values = |vocabulary| {
            let mut config = config();
            config.architecture.vocabulary = vocabulary;
            let wte = tensors(&config, 1).unwrap().remove("transformer.wte.weight").unwrap();
            Vec::<f32>::try_from(wte.narrow(0, 0, 10).flatten(0, -1)).unwrap()
        };
        assert_eq!(values(10), values(3000));
        let whole = tensors(&config(), 1).unwrap().remove("transformer.wte.weight").unwrap();
        let expected = normal_of(&config(), "transformer.wte.weight", whole.numel());
        assert_eq!(Vec::<f32>::try_from(whole.flatten(0, -1)).unwrap(), expected);
    }

    fn normal_of(config: &Config, name: &str, count: usize) -> Vec<f32> {
        let mut values = vec![0.0; count];
        let Initial::Normal { deviation } = config.initial(name, &[1, 1]) else { panic!("{name} is no matrix") };
        Random::named(1, name).fill_normal(0.0, deviation, 0, &mut values);
        values
    }
}
