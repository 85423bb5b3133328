//! A pickle reader that runs nothing.
//!
//! Pickle is a small stack language whose `REDUCE` calls any function by name, which is why loading a stranger's `.bin`
//! with Python can run a stranger's code. Here the names come from a short allow-list ([`Global`]), and "calling" one only
//! writes down its arguments; [`crate::bin_file`] gives them meaning and checks them. Everything else is an error.
//!
//! The language has no jumps, so a program is over when its bytes are. Values live in one flat arena and refer to each
//! other by number: a list that contains itself is no loop here and freeing a deep one needs no stack. The limits below
//! bound memory to a small multiple of the bytes read, and a length is checked before anything is allocated for it.
//!
//! Opcodes: <https://github.com/python/cpython/blob/main/Lib/pickletools.py>.

use std::{collections::HashMap, io::BufRead, path::Path};

use crate::{Dtype, Error, Result};

/// Bytes of one pickle; the ones of real checkpoints have a few hundred for each tensor.
const BYTES_LIMIT: u64 = 64 << 20;
/// Opcodes of one pickle.
const OPCODE_LIMIT: u64 = 4_000_000;
/// Entries of one pickle's memo.
const MEMO_LIMIT: usize = 2_000_000;
/// Marks that are open at the same time, which is how deep containers nest while they are built.
const DEPTH_LIMIT: usize = 1_000;
/// Arguments of one call.
const ARGUMENT_LIMIT: usize = 16;
/// Items that all `OrderedDict([...])` calls together may copy.
const COPY_LIMIT: usize = 8_000_000;
/// Bytes of a `module` or `name` line.
const LINE_LIMIT: u64 = 4096;

/// The names a pickle may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Global {
    /// `collections.OrderedDict`
    OrderedDict,
    /// `torch._utils._rebuild_tensor` and `_rebuild_tensor_v2`
    RebuildTensor,
    /// `torch._utils._rebuild_parameter` and `_rebuild_parameter_with_state`
    RebuildParameter,
    /// `torch.FloatStorage` and its like
    Storage(Dtype),
    /// `torch.Size`
    Size,
    /// Something that describes a tensor without being one: a dtype, a device, a layout.
    Description,
}

/// PyTorch's names for the storages of a dtype.
const STORAGES: [(&str, Dtype); 10] = [
    ("DoubleStorage", Dtype::F64),
    ("FloatStorage", Dtype::F32),
    ("HalfStorage", Dtype::F16),
    ("BFloat16Storage", Dtype::Bf16),
    ("LongStorage", Dtype::I64),
    ("IntStorage", Dtype::I32),
    ("ShortStorage", Dtype::I16),
    ("CharStorage", Dtype::I8),
    ("ByteStorage", Dtype::U8),
    ("BoolStorage", Dtype::Bool),
];

/// The name of the storage that holds elements of `dtype`.
pub(crate) fn storage_name(dtype: Dtype) -> &'static str {
    STORAGES.iter().find(|(_, known)| *known == dtype).map_or("UntypedStorage", |(name, _)| name)
}

fn storage_dtype(name: &str) -> Option<Dtype> {
    STORAGES.iter().find(|(known, _)| *known == name).map(|(_, dtype)| *dtype)
}

impl Global {
    fn find(module: &str, name: &str) -> Option<Self> {
        if let ("torch" | "torch.cuda", Some(dtype)) = (module, storage_dtype(name)) {
            return Some(Self::Storage(dtype));
        }
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Self::RebuildParameter,
            ("torch" | "torch.storage", "UntypedStorage" | "_UntypedStorage") => Self::Storage(Dtype::U8),
            ("torch", "Size") => Self::Size,
            ("torch", "device") | ("torch.serialization", "_get_layout") => Self::Description,
            ("torch", dtype) if DTYPES.contains(&dtype) => Self::Description,
            _ => return None,
        })
    }
}

const DTYPES: [&str; 10] =
    ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"];

/// The number of a value in [`Pickle::nodes`].
pub(crate) type Id = usize;

/// One value. Containers hold numbers of values.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Node {
    /// `None`, and whatever tells nothing about tensors.
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    /// What `_rebuild_tensor_v2` would be called with.
    Tensor(Vec<Id>),
    /// The description of a storage that lies outside the pickle.
    Persistent(Id),
}

/// A pickle that has been read.
#[derive(Debug)]
pub(crate) struct Pickle {
    nodes: Vec<Node>,
    /// What the program leaves.
    pub(crate) root: Id,
}

impl Pickle {
    pub(crate) fn node(&self, id: Id) -> &Node {
        self.nodes.get(id).unwrap_or(&Node::None)
    }

    pub(crate) fn text(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn integer(&self, id: Id) -> Option<i64> {
        match self.node(id) {
            Node::Int(number) => i64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// The elements of a tuple or list.
    pub(crate) fn sequence(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::Tuple(items) | Node::List(items) => Some(items),
            _ => None,
        }
    }

    /// Every value, whether it is reachable from the root or not.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter()
    }
}

/// Reads one pickle and stops behind its last byte.
///
/// # Errors
///
/// [`Error::PickleGlobal`] for a name that is not on the allow-list, [`Error::Pickle`] for anything else that a
/// checkpoint's pickle does not do, [`Error::Io`].
pub(crate) fn read(path: &Path, input: &mut impl BufRead) -> Result<Pickle> {
    let mut machine = Machine {
        path,
        input,
        position: 0,
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        copied: 0,
    };
    let root = machine.run()?;
    Ok(Pickle { nodes: machine.nodes, root })
}

struct Machine<'a, R> {
    path: &'a Path,
    input: &'a mut R,
    /// Bytes consumed so far.
    position: u64,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    /// For each open mark, the height of the stack when it was set.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
    /// Items copied out of lists of pairs so far.
    copied: usize,
}

impl<R: BufRead> Machine<'_, R> {
    fn error(&self, problem: impl Into<String>) -> Error {
        Error::Pickle { file: self.path.to_owned(), position: self.position, problem: problem.into() }
    }

    fn run(&mut self) -> Result<Id> {
        for _ in 0..OPCODE_LIMIT {
            let [opcode] = self.bytes::<1>()?;
            if opcode == b'.' {
                return self.pop();
            }
            self.step(opcode)?;
        }
        Err(self.error(format!("it has more than {OPCODE_LIMIT} opcodes")))
    }

    fn step(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            // Headers that change nothing: PROTO, FRAME.
            0x80 => self.bytes::<1>().map(drop)?,
            0x95 => self.bytes::<8>().map(drop)?,
            // Marks and the stack: MARK, POP, POP_MARK, DUP.
            b'(' => {
                if self.marks.len() >= DEPTH_LIMIT {
                    return Err(self.error(format!("it nests deeper than {DEPTH_LIMIT}")));
                }
                self.marks.push(self.stack.len());
            }
            b'0' => self.pop().map(drop)?,
            b'1' => self.pop_mark().map(drop)?,
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            // Constants: NONE, NEWTRUE, NEWFALSE.
            b'N' => self.push(Node::None),
            0x88 => self.push(Node::Bool(true)),
            0x89 => self.push(Node::Bool(false)),
            // Numbers: BININT, BININT1, BININT2, LONG1, LONG4, INT, LONG, BINFLOAT, FLOAT.
            b'J' => self.number(i32::from_le_bytes)?,
            b'K' => self.number(u8::from_le_bytes)?,
            b'M' => self.number(u16::from_le_bytes)?,
            0x8a => {
                let [length] = self.bytes::<1>()?;
                self.long(u64::from(length))?;
            }
            0x8b => {
                let length = u32::from_le_bytes(self.bytes()?);
                self.long(u64::from(length))?;
            }
            b'I' | b'L' => {
                let line = self.line()?;
                let node = match line.as_str() {
                    "01" => Node::Bool(true),
                    "00" => Node::Bool(false),
                    digits => match digits.trim_end_matches('L').parse() {
                        Ok(number) => Node::Int(number),
                        Err(_) => return Err(self.error(format!("{digits:?} is not an integer it may use"))),
                    },
                };
                self.push(node);
            }
            b'G' => {
                let number = f64::from_be_bytes(self.bytes()?);
                self.push(Node::Float(number));
            }
            b'F' => {
                let line = self.line()?;
                let number = line.parse().map_err(|_| self.error(format!("{line:?} is not a number")))?;
                self.push(Node::Float(number));
            }
            // Texts and bytes: (SHORT_)BINSTRING, (SHORT_)BINUNICODE(8), (SHORT_)BINBYTES(8), STRING, UNICODE.
            b'U' | 0x8c | b'C' => {
                let [length] = self.bytes::<1>()?;
                self.string(u64::from(length))?;
            }
            b'T' | b'X' | b'B' => {
                let length = u32::from_le_bytes(self.bytes()?);
                self.string(u64::from(length))?;
            }
            0x8d | 0x8e => {
                let length = u64::from_le_bytes(self.bytes()?);
                self.string(length)?;
            }
            b'S' => {
                let line = self.line()?;
                self.push(Node::Text(line.trim_matches(['\'', '"']).to_owned()));
            }
            b'V' => {
                let line = self.line()?;
                self.push(Node::Text(line));
            }
            // Tuples: EMPTY_TUPLE, TUPLE1, TUPLE2, TUPLE3, TUPLE.
            b')' => self.push(Node::Tuple(Vec::new())),
            0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let from = self.above_mark(count)?;
                let items = self.stack.split_off(from);
                self.push(Node::Tuple(items));
            }
            b't' => {
                let items = self.pop_mark()?;
                self.push(Node::Tuple(items));
            }
            // Lists (and sets, which only a setting beside the tensors could be): EMPTY_LIST, EMPTY_SET, LIST, FROZENSET,
            // APPEND, APPENDS, ADDITEMS.
            b']' | 0x8f => self.push(Node::List(Vec::new())),
            b'l' | 0x91 => {
                let items = self.pop_mark()?;
                self.push(Node::List(items));
            }
            b'a' => {
                let item = self.pop()?;
                self.extend_list(&[item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.extend_list(&items)?;
            }
            // Dicts: EMPTY_DICT, DICT, SETITEM, SETITEMS.
            b'}' => self.push(Node::Dict(Vec::new())),
            b'd' => {
                let items = self.pop_mark()?;
                self.push(Node::Dict(Vec::new()));
                self.extend_dict(&items)?;
            }
            b's' => {
                let from = self.above_mark(2)?;
                let items = self.stack.split_off(from);
                self.extend_dict(&items)?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.extend_dict(&items)?;
            }
            // The memo: PUT, BINPUT, LONG_BINPUT, MEMOIZE, GET, BINGET, LONG_BINGET.
            b'p' => {
                let key = self.line_number()?;
                self.put(key)?;
            }
            b'q' => {
                let [key] = self.bytes::<1>()?;
                self.put(u64::from(key))?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.bytes()?);
                self.put(u64::from(key))?;
            }
            0x94 => self.put(self.memo.len() as u64)?,
            b'g' => {
                let key = self.line_number()?;
                self.get(key)?;
            }
            b'h' => {
                let [key] = self.bytes::<1>()?;
                self.get(u64::from(key))?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.bytes()?);
                self.get(u64::from(key))?;
            }
            // Names: GLOBAL, STACK_GLOBAL. INST names one too, and is answered before it is refused.
            b'c' | b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(&module, &name)?;
                if opcode == b'i' {
                    return Err(self.unsupported(opcode));
                }
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let text = |id: Id| match self.nodes.get(id) {
                    Some(Node::Text(text)) if text.len() as u64 <= LINE_LIMIT => Some(text.clone()),
                    _ => None,
                };
                match (text(module), text(name)) {
                    (Some(module), Some(name)) => self.global(&module, &name)?,
                    _ => return Err(self.error("a name it asks for is not a text of reasonable length")),
                }
            }
            // "Calls": REDUCE, NEWOBJ; BUILD sets attributes; BINPERSID names a storage.
            b'R' | 0x81 => self.call()?,
            b'b' => {
                let (_state, top) = (self.pop()?, self.top()?);
                // Attributes of a state dict are its version numbers, those of a tensor its Python extras.
                if !matches!(self.nodes.get(top), Some(Node::Dict(_) | Node::Tensor(_))) {
                    return Err(self.error("it sets attributes of something that is neither a dict nor a tensor"));
                }
            }
            b'Q' => {
                let description = self.pop()?;
                self.push(Node::Persistent(description));
            }
            _ => return Err(self.unsupported(opcode)),
        }
        Ok(())
    }

    fn unsupported(&self, opcode: u8) -> Error {
        self.error(format!("opcode {opcode:#04x} has no place in a checkpoint"))
    }

    fn call(&mut self) -> Result<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let arguments = match self.nodes.get(arguments) {
            // Nothing on the allow-list takes more; an endless tuple, recalled and copied over and over, would fill memory.
            Some(Node::Tuple(arguments)) if arguments.len() <= ARGUMENT_LIMIT => arguments.clone(),
            _ => return Err(self.error(format!("a call's arguments are not a tuple of at most {ARGUMENT_LIMIT}"))),
        };
        let Some(Node::Global(function)) = self.nodes.get(function) else {
            return Err(self.error("it calls something that is not a name"));
        };
        match function {
            Global::RebuildTensor => self.push(Node::Tensor(arguments)),
            Global::RebuildParameter | Global::Size => match arguments.first() {
                Some(&first) => self.stack.push(first),
                None => return Err(self.error("a call lacks its argument")),
            },
            Global::OrderedDict => {
                self.push(Node::Dict(Vec::new()));
                if let Some(&pairs) = arguments.first() {
                    self.extend_with_pairs(pairs)?;
                }
            }
            Global::Description => self.push(Node::None),
            Global::Storage(_) => return Err(self.error("it makes a storage that has no place in the file")),
        }
        Ok(())
    }

    /// `OrderedDict([(key, value), ...])`, as Python 2 wrote it.
    fn extend_with_pairs(&mut self, pairs: Id) -> Result<()> {
        let pairs = match self.nodes.get(pairs) {
            Some(Node::List(pairs) | Node::Tuple(pairs)) => pairs,
            _ => return Err(self.error("an OrderedDict is made from something that is not a list")),
        };
        let mut items = Vec::with_capacity(pairs.len() * 2);
        for &pair in pairs {
            match self.nodes.get(pair) {
                Some(Node::List(pair) | Node::Tuple(pair)) if pair.len() == 2 => items.extend_from_slice(pair),
                _ => return Err(self.error("an OrderedDict is made from something that is not a pair")),
            }
        }
        self.copied += items.len();
        if self.copied > COPY_LIMIT {
            return Err(self.error(format!("it copies more than {COPY_LIMIT} items")));
        }
        self.extend_dict(&items)
    }

    fn global(&mut self, module: &str, name: &str) -> Result<()> {
        let Some(global) = Global::find(module, name) else {
            return Err(Error::PickleGlobal { file: self.path.to_owned(), global: format!("{module}.{name}") });
        };
        self.push(Node::Global(global));
        Ok(())
    }

    fn push(&mut self, node: Node) {
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
    }

    /// Where the top `count` values begin, none of them below the newest mark.
    fn above_mark(&self, count: usize) -> Result<usize> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let from = self.stack.len().checked_sub(count).filter(|&from| from >= floor);
        from.ok_or_else(|| self.error("it takes more values than it has"))
    }

    fn top(&self) -> Result<Id> {
        let from = self.above_mark(1)?;
        self.stack.get(from).copied().ok_or_else(|| self.error("it takes more values than it has"))
    }

    fn pop(&mut self) -> Result<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>> {
        match self.marks.pop() {
            Some(height) if height <= self.stack.len() => Ok(self.stack.split_off(height)),
            _ => Err(self.error("a mark is missing")),
        }
    }

    fn extend_list(&mut self, more: &[Id]) -> Result<()> {
        let top = self.top()?;
        match self.nodes.get_mut(top) {
            Some(Node::List(items)) => items.extend_from_slice(more),
            _ => return Err(self.error("it appends to something that is not a list")),
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: &[Id]) -> Result<()> {
        let top = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        match self.nodes.get_mut(top) {
            Some(Node::Dict(dict)) if rest.is_empty() => dict.extend(pairs.iter().map(|&[key, value]| (key, value))),
            _ => return Err(self.error("it sets items of something that is not a dict")),
        }
        Ok(())
    }

    fn put(&mut self, key: u64) -> Result<()> {
        if self.memo.len() >= MEMO_LIMIT {
            return Err(self.error(format!("it remembers more than {MEMO_LIMIT} values")));
        }
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn get(&mut self, key: u64) -> Result<()> {
        let Some(&id) = self.memo.get(&key) else {
            return Err(self.error(format!("it recalls value {key}, which it never stored")));
        };
        self.stack.push(id);
        Ok(())
    }

    fn number<const N: usize, T: Into<i128>>(&mut self, parse: fn([u8; N]) -> T) -> Result<()> {
        let bytes = self.bytes()?;
        self.push(Node::Int(parse(bytes).into()));
        Ok(())
    }

    /// A signed little-endian integer of `length` bytes.
    fn long(&mut self, length: u64) -> Result<()> {
        if length > 16 {
            return Err(self.error(format!("an integer of {length} bytes")));
        }
        let bytes = self.slice(length)?;
        let negative = bytes.last().is_some_and(|&last| last >= 0x80);
        let mut wide = [if negative { 0xff } else { 0 }; 16];
        for (wide, byte) in wide.iter_mut().zip(bytes) {
            *wide = byte;
        }
        self.push(Node::Int(i128::from_le_bytes(wide)));
        Ok(())
    }

    fn string(&mut self, length: u64) -> Result<()> {
        let bytes = self.slice(length)?;
        // Python 2 strings and bytes need not be UTF-8, and none of those is a tensor's name.
        self.push(Node::Text(String::from_utf8_lossy(&bytes).into_owned()));
        Ok(())
    }

    fn line_number(&mut self) -> Result<u64> {
        let line = self.line()?;
        line.parse().map_err(|_| self.error(format!("{line:?} is not a number")))
    }

    fn line(&mut self) -> Result<String> {
        let mut bytes = Vec::new();
        loop {
            match self.bytes::<1>()? {
                [b'\n'] => break,
                [byte] => bytes.push(byte),
            }
            if bytes.len() as u64 > LINE_LIMIT {
                return Err(self.error(format!("a line of more than {LINE_LIMIT} bytes")));
            }
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn slice(&mut self, length: u64) -> Result<Vec<u8>> {
        if length > BYTES_LIMIT - self.position.min(BYTES_LIMIT) {
            return Err(self.error(format!("a value of {length} bytes; the limit for all is {BYTES_LIMIT}")));
        }
        // Grown as bytes arrive: the length is only a claim.
        let mut bytes = Vec::new();
        let mut left = length as usize;
        while left > 0 {
            let step = left.min(1 << 16);
            let begin = bytes.len();
            bytes.resize(begin + step, 0);
            if let Some(fresh) = bytes.get_mut(begin..) {
                self.fill(fresh)?;
            }
            left -= step;
        }
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        if self.position + bytes.len() as u64 > BYTES_LIMIT {
            return Err(self.error(format!("it is longer than {BYTES_LIMIT} bytes")));
        }
        match self.input.read_exact(bytes) {
            Ok(()) => {
                self.position += bytes.len() as u64;
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(self.error("it ends in the middle; the file is truncated, download it again"))
            }
            Err(source) => Err(Error::Io { path: self.path.to_owned(), source }),
        }
    }
}
