//! GGUF files made by hand, and spoilt.

use std::path::Path;

/// A file of keys, tensors and zeros.
#[derive(Clone)]
pub(crate) struct Builder {
    pub(crate) version: u32,
    pub(crate) alignment: usize,
    keys: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: usize,
}

impl Default for Builder {
    fn default() -> Self {
        Self { version: 3, alignment: 32, keys: Vec::new(), tensors: Vec::new(), data: 0 }
    }
}

impl Builder {
    pub(crate) fn key(mut self, bytes: Vec<u8>) -> Self {
        self.keys.push(bytes);
        self
    }

    pub(crate) fn tensor(mut self, bytes: Vec<u8>) -> Self {
        self.tensors.push(bytes);
        self
    }

    /// So many zeros for the tensors to lie in.
    pub(crate) fn data(mut self, bytes: usize) -> Self {
        self.data = bytes;
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.keys.len() as u64).to_le_bytes());
        bytes.extend(self.keys.concat());
        bytes.extend(self.tensors.concat());
        if self.data > 0 {
            bytes.resize(bytes.len().next_multiple_of(self.alignment) + self.data, 0);
        }
        bytes
    }
}

pub(crate) fn string(text: &str) -> Vec<u8> {
    [(text.len() as u64).to_le_bytes().to_vec(), text.as_bytes().to_vec()].concat()
}

/// A key, the number of its type, and its value.
pub(crate) fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [string(name), kind.to_le_bytes().into(), value.into()].concat()
}

pub(crate) fn array(kind: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [kind.to_le_bytes().to_vec(), count.to_le_bytes().into(), elements.into()].concat()
}

pub(crate) fn strings<'a>(texts: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
    let texts: Vec<_> = texts.into_iter().map(string).collect();
    array(8, texts.len() as u64, &texts.concat())
}

/// A tensor's entry; the innermost dimension first, the offset from where tensors begin.
pub(crate) fn tensor(name: &str, dimensions: &[u64], format: u32, offset: u64) -> Vec<u8> {
    let mut bytes = string(name);
    bytes.extend((dimensions.len() as u32).to_le_bytes());
    bytes.extend(dimensions.iter().copied().flat_map(u64::to_le_bytes));
    bytes.extend(format.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

/// Files to start from: one with every type of value, and models that gguf-py wrote.
pub(crate) fn fuzz_seeds() -> Vec<Vec<u8>> {
    let every = (0..8).chain(10..13).fold(Builder::default(), |builder, kind| {
        let list = key(
            &format!("l{kind}"),
            9,
            &array(kind, 2, &[0; 16][..2 * [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8][kind as usize]]),
        );
        builder.key(list)
    });
    let nested = array(9, 2, &[strings(["a", "bc"]), array(9, 1, &array(4, 1, &[1; 4]))].concat());
    let every = every
        .key(key("s", 8, &string("text")))
        .key(key("t", 9, &strings(["a", "", "日本"])))
        .key(key("n", 9, &nested))
        .key(key("general.alignment", 4, &16_u32.to_le_bytes()))
        .tensor(tensor("a", &[32, 2], 2, 0))
        .tensor(tensor("b", &[2, 2, 2, 2], 1, 48))
        .data(200);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/gguf_models");
    let models =
        ["llama_k", "gpt2", "gpt_oss"].map(|name| std::fs::read(folder.join(name).join("mixed.gguf")).unwrap());
    [every.bytes()].into_iter().chain(models).collect()
}

/// Random numbers of a seed: SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

/// One of the seeds, spoilt in one to four places, mostly in its header.
pub(crate) fn mutate(seeds: &[Vec<u8>], number: u64) -> Vec<u8> {
    let mut random = Random(number);
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..1 + random.below(4) {
        let header = if random.below(8) == 0 { bytes.len() } else { bytes.len().min(4000) };
        let at = random.below(header);
        let there = bytes.len() - at;
        match random.below(8) {
            0 => bytes.truncate(at),
            1 => {
                let end = at + random.below(20).min(there);
                bytes.drain(at..end);
            }
            2 => {
                let from = random.below(bytes.len());
                let piece = bytes[from..(from + random.below(60)).min(bytes.len())].to_vec();
                bytes.splice(at..at, piece);
            }
            // A number: small, at the border of a width, or any.
            3 | 4 => {
                let number = match random.below(4) {
                    0 => random.below(16) as u64,
                    1 => (1_u64 << random.below(64)).wrapping_sub(random.below(3) as u64),
                    2 => random.below(5000) as u64,
                    _ => random.next(),
                };
                let width = [1, 4, 8][random.below(3)].min(there);
                bytes[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
            }
            _ if there > 0 => bytes[at] ^= 1 << random.below(8),
            _ => {}
        }
        if bytes.is_empty() {
            break;
        }
    }
    bytes
}
