//! Matrix products, by the faster of the libraries that libtorch brings.

use std::{cell::OnceCell, sync::Arc};

use lowmem::PackedMatrix;
use tch::{Device, Kind, TchError, Tensor};

use crate::{Library, Products, linear::unreadable, row};

/// The most terms of a sum that are left to the BLAS at once. It cuts longer sums where the number of rows and threads suggests,
/// and a row's bits would depend on both; shorter ones it adds in one order. (MKL on AVX-512: 768 in one order, 1024 not.)
const TERMS: i64 = 768;

/// From so many rows on, weights `[out, in]` stand on the right: as fast there, and the product need not be turned. The bits
/// are the same on both sides, from 16 rows on.
const MANY: i64 = 64;

/// Entries of weights that are widened at a time: 4 MiB of f32, which stay in a processor's cache until they are multiplied.
const WIDENED: i64 = 1 << 20;

/// The left factor of matrix products, `[.., in]`.
///
/// Which library multiplies f32 on a CPU is [`Products`]' choice. Products of gradients, in f64 and on other devices are
/// libtorch's. From two rows on, a row gets the same bits whatever the number of rows and threads, where oneDNN or MKL for Intel
/// multiplies with AVX-512, and bf16 is not widened; `docs/numerics.md` in the repository says what was measured.
///
/// | library | what is done |
/// |---|---|
/// | oneDNN | the rows are handed over once, and multiplied with weights of both layouts where they lie |
/// | BLAS | sums of more than 768 terms are cut into equal pieces; weights `[out, in]` stand on the left of fewer than 64 rows |
/// | a single row | by us, on all processors, weights in f32, bf16 or f16 ([`lowmem::matrix_times_vector`]) |
/// | bf16, widened | slices of the weights are converted to f32, 4 MiB at a time, and multiplied as above |
///
/// ```
/// use models::Factor;
/// use tch::{Device, Kind, Tensor};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (x, weight) = (Tensor::f_ones([2, 3], (Kind::Float, Device::Cpu))?, Tensor::f_ones([5, 3], (Kind::Float, Device::Cpu))?);
/// assert_eq!(Factor::new(&x)?.times_transposed(&weight, None)?.size(), [2, 5]);
/// # Ok(())
/// # }
/// ```
pub struct Factor<'a> {
    x: &'a Tensor,
    /// How many rows `x` has.
    rows: i64,
    /// Whether it is one row, in f32, bf16 or f16 on the CPU, that no gradient comes back to and that need not have the bits that it has
    /// among others: it is multiplied without libtorch.
    single: bool,
    way: Way,
    /// The numbers of such a row in f32, once they were asked for.
    vector: OnceCell<Arc<[f32]>>,
}

enum Way {
    /// Libtorch's own, with the rows as `[n, in]`; none where there is nothing to multiply. In three dimensions libtorch would
    /// turn and copy the weights for a view of a longer text's last token.
    Plain(Option<Tensor>),
    /// The rows as oneDNN holds them, `[n, in]`.
    OneDnn(Tensor),
    /// The rows, `[n, in]`.
    Blas(Tensor),
    /// bf16 as f32.
    Widened(Box<Way>),
}

/// Which way a matrix lies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    OutIn,
    InOut,
}

impl Layout {
    /// Terms `from..from + count` of the sums.
    fn terms(self, weight: &Tensor, from: i64, count: i64) -> Result<Tensor, TchError> {
        weight.f_narrow(if self == Self::OutIn { 1 } else { 0 }, from, count)
    }

    /// Columns `from..from + count` of the product.
    fn columns(self, weight: &Tensor, from: i64, count: i64) -> Result<Tensor, TchError> {
        weight.f_narrow(if self == Self::OutIn { 0 } else { 1 }, from, count)
    }

    /// As `[in, out]`, a view.
    fn in_out(self, weight: &Tensor) -> Result<Tensor, TchError> {
        if self == Self::OutIn { weight.f_transpose(0, 1) } else { Ok(weight.shallow_clone()) }
    }

    /// As `[out, in]`, a view, which libtorch turns back when it multiplies, so nothing is copied.
    fn out_in(self, weight: &Tensor) -> Result<Tensor, TchError> {
        if self == Self::InOut { weight.f_transpose(0, 1) } else { Ok(weight.shallow_clone()) }
    }

    /// The length of the sums, and how many there are for a row.
    fn sizes(self, weight: &Tensor) -> Result<(i64, i64), TchError> {
        let (first, second) = weight.size2()?;
        Ok(if self == Self::OutIn { (second, first) } else { (first, second) })
    }
}

impl<'a> Factor<'a> {
    /// Takes `x`, `[.., in]`.
    ///
    /// # Errors
    ///
    /// Whatever libtorch says, such as that memory is full.
    pub fn new(x: &'a Tensor) -> Result<Self, TchError> {
        Self::with(x, false)
    }

    /// As [`Factor::new`], but a single row gets the bits that it gets among others: alone it is multiplied in another way, which
    /// adds in another order.
    ///
    /// # Errors
    ///
    /// As [`Factor::new`].
    pub fn alike(x: &'a Tensor) -> Result<Self, TchError> {
        Self::with(x, true)
    }

    /// As [`Factor::alike`] where `alike` says so, else as [`Factor::new`].
    pub(crate) fn with(x: &'a Tensor, alike: bool) -> Result<Self, TchError> {
        lowmem::prepare_libtorch();
        // A value of the variable that is none was refused when the model was opened.
        let products = Products::chosen().ok();
        Self::by(x, alike, products.map_or((Library::Blas, None), |products| (products.library, products.widen_from)))
    }

    /// With `library` for f32, and bf16 widened from so many rows on.
    fn by(x: &'a Tensor, alike: bool, (library, widen_from): (Library, Option<i64>)) -> Result<Self, TchError> {
        let width = x.size().last().copied().unwrap_or(0);
        let rows = if width > 0 { x.numel() as i64 / width } else { 0 };
        let here = x.device() == Device::Cpu && !x.requires_grad() && rows > 0;
        let narrow = matches!(x.f_kind()?, Kind::Float | Kind::BFloat16 | Kind::Half);
        let single = here && rows == 1 && narrow && !alike;
        let way = match x.f_kind()? {
            // What is not multiplied here is multiplied by libtorch.
            _ if single => Way::Plain(Some(x.f_reshape([1, width])?)),
            Kind::Float if here => Way::of_f32(&x.f_reshape([-1, width])?, alike, library)?,
            // A row that shall be as others are goes the way that most rows go.
            Kind::BFloat16 if here && widen_from.is_some_and(|least| alike || rows >= least) => {
                let wide = x.f_reshape([-1, width])?.f_to_kind(Kind::Float)?;
                Way::Widened(Box::new(Way::of_f32(&wide, alike, library)?))
            }
            _ if rows == 0 => Way::Plain(None),
            _ if alike && rows == 1 && x.device() == Device::Cpu => {
                Way::Plain(Some(x.f_reshape([1, width])?.f_repeat([2, 1])?))
            }
            _ => Way::Plain(Some(x.f_reshape([-1, width])?)),
        };
        Ok(Self { x, rows, single, way, vector: OnceCell::new() })
    }

    /// `x weightᵀ + bias` with `weight` `[out, in]` and `bias` `[out]`; the result is `[.., out]`.
    ///
    /// # Errors
    ///
    /// Whatever libtorch says, such as that shapes do not fit.
    pub fn times_transposed(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
        self.product(weight, Layout::OutIn, bias)
    }

    /// `x weight + bias` with `weight` `[in, out]` and `bias` `[out]`; the result is `[.., out]`.
    ///
    /// # Errors
    ///
    /// As [`Factor::times_transposed`].
    pub fn times(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
        self.product(weight, Layout::InOut, bias)
    }

    /// Whether it can be multiplied with matrices in the blocks of their file.
    pub(crate) fn can_be_packed(&self) -> bool {
        self.single
    }

    /// The dtype of the rows, and of the products.
    pub(crate) fn kind(&self) -> Result<Kind, TchError> {
        self.x.f_kind()
    }

    /// The product of one row with a matrix in the blocks of its file, computed in f32.
    pub(crate) fn times_packed(&self, packed: &Arc<PackedMatrix>, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
        let vector = self.vector()?;
        let product = packed.product(vector).map_err(unreadable)?;
        self.with_bias(product, bias)
    }

    /// The numbers of the single row.
    fn vector(&self) -> Result<&Arc<[f32]>, TchError> {
        if let Some(vector) = self.vector.get() {
            return Ok(vector);
        }
        let other = || TchError::Kind("a row that is not f32, bf16 or f16 on the CPU, or has gradients".into());
        let numbers = row::numbers(self.x)?.ok_or_else(other)?;
        Ok(self.vector.get_or_init(|| numbers.into()))
    }

    /// The product of the single row, `[.., out]`.
    fn with_bias(&self, mut product: Vec<f32>, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
        let numbers = row::numbers_of(bias)?;
        if let Some(bias) = &numbers {
            product.iter_mut().zip(bias).for_each(|(number, bias)| *number += bias);
        }
        let mut shape = self.x.size();
        if let Some(last) = shape.last_mut() {
            *last = product.len() as i64;
        }
        let product = lowmem::tensor_of(&product, &shape, self.kind()?)?;
        // Whoever wants gradients of a bias gets them.
        bias.filter(|_| numbers.is_none()).map_or(Ok(product.shallow_clone()), |bias| product.f_add(bias))
    }

    fn product(&self, weight: &Tensor, layout: Layout, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
        if self.single
            && fits(weight, bias, self.kind()?)?
            && let Some(product) = lowmem::matrix_times_vector(weight, layout == Layout::InOut, self.vector()?)
        {
            return self.with_bias(product, bias);
        }
        let product = match &self.way {
            Way::Plain(Some(rows)) => rows.f_linear(&layout.out_in(weight)?, bias)?,
            Way::Widened(way) if fits(weight, bias, Kind::BFloat16)? => way.of_widened(weight, layout, bias)?,
            Way::OneDnn(_) | Way::Blas(_) if fits(weight, bias, Kind::Float)? => {
                self.way.of_f32_weights(weight, layout, bias)?
            }
            _ => return self.x.f_linear(&layout.out_in(weight)?, bias),
        };
        let mut shape = self.x.size();
        if let Some(last) = shape.last_mut() {
            *last = product.size2()?.1;
        }
        let product = if product.size2()?.0 == self.rows { product } else { product.f_narrow(0, 0, self.rows)? };
        product.f_view(shape.as_slice())
    }
}

impl Way {
    /// For `rows`, `[n, in]` in f32 on the CPU.
    fn of_f32(rows: &Tensor, alike: bool, library: Library) -> Result<Self, TchError> {
        let rows = if alike && rows.size2()?.0 == 1 { rows.f_repeat([2, 1])? } else { rows.shallow_clone() };
        Ok(match library {
            Library::OneDnn => Self::OneDnn(rows.f_to_mkldnn(None)?),
            Library::Blas => Self::Blas(rows),
        })
    }

    /// `[n, out]`, perhaps with rows beyond ours; all are f32 on the CPU.
    fn of_f32_weights(&self, weight: &Tensor, layout: Layout, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
        match self {
            Self::OneDnn(rows) if weight.is_contiguous() => match layout {
                Layout::OutIn => rows.f_mkldnn_linear(weight, bias)?.f_to_dense(None, false),
                Layout::InOut => {
                    // The gradient of `y = g wᵀ` with respect to `g`, with ours for the incoming one, is the product in
                    // this layout.
                    let size = [rows.size2()?.0, weight.size2()?.1];
                    let product = Tensor::f_mkldnn_linear_backward_input(size, rows, weight)?;
                    let mut product = product.f_to_dense(None, false)?;
                    match bias {
                        Some(bias) => product.f_add_(bias),
                        None => Ok(product),
                    }
                }
            },
            Self::OneDnn(rows) => rows.f_to_dense(None, false)?.f_linear(&layout.out_in(weight)?, bias),
            Self::Blas(rows) => by_blas(rows, weight, layout, bias),
            // Not made of f32.
            Self::Plain(_) | Self::Widened(_) => {
                Err(TchError::Kind("rows that are not f32 among products of f32".into()))
            }
        }
    }

    /// `[n, out]` in bf16, from weights and a bias in bf16. Sums, and the bias added to them, are f32, and rounded once.
    fn of_widened(&self, weight: &Tensor, layout: Layout, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
        let (terms, columns) = layout.sizes(weight)?;
        let step = (WIDENED / terms.max(1) / 16 * 16).max(16);
        let mut slices = Vec::new();
        let mut from = 0;
        while from < columns {
            let count = step.min(columns - from);
            let slice = layout.columns(weight, from, count)?.f_to_kind(Kind::Float)?;
            let bias = bias.map(|bias| bias.f_narrow(0, from, count)?.f_to_kind(Kind::Float)).transpose()?;
            slices.push(self.of_f32_weights(&slice.f_contiguous()?, layout, bias.as_ref())?.f_to_kind(Kind::BFloat16)?);
            from += count;
        }
        Tensor::f_cat(&slices, 1)
    }
}

/// `[n, out]`, the sums in pieces.
fn by_blas(rows: &Tensor, weight: &Tensor, layout: Layout, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
    let (terms, _) = layout.sizes(weight)?;
    let (count, width) = rows.size2()?;
    if width != terms {
        // Refused there.
        return rows.f_linear(&layout.out_in(weight)?, bias);
    }
    let step = piece(terms);
    let mut pieces = (0..terms).step_by(step as usize).map(|from| {
        let count = step.min(terms - from);
        Ok::<_, TchError>((rows.f_narrow(1, from, count)?, layout.terms(weight, from, count)?))
    });
    let Some(first) = pieces.next() else { return rows.f_linear(&layout.out_in(weight)?, bias) };
    let (first_rows, first_weight) = first?;
    match layout {
        Layout::OutIn if count < MANY => {
            let first_rows = first_rows.f_transpose(0, 1)?;
            let mut product = match bias {
                Some(bias) => bias.f_unsqueeze(1)?.f_addmm(&first_weight, &first_rows)?,
                None => first_weight.f_mm(&first_rows)?,
            };
            for piece in pieces {
                let (rows, weight) = piece?;
                product = product.f_addmm_(&weight, &rows.f_transpose(0, 1)?)?;
            }
            product.f_transpose(0, 1)?.f_contiguous()
        }
        _ => {
            let mut product = first_rows.f_linear(&layout.out_in(&first_weight)?, bias)?;
            for piece in pieces {
                let (rows, weight) = piece?;
                product = product.f_addmm_(&rows, &layout.in_out(&weight)?)?;
            }
            Ok(product)
        }
    }
}

/// The length of the pieces of a sum: as few as there must be, about equal, whole vectors.
fn piece(terms: i64) -> i64 {
    let up = |number: i64, unit: i64| (number + unit - 1) / unit;
    let pieces = up(terms, TERMS).max(1);
    up(up(terms, pieces), 16) * 16
}

/// Whether our ways take weights and bias: in `kind`, on the CPU, with nobody wanting gradients.
fn fits(weight: &Tensor, bias: Option<&Tensor>, kind: Kind) -> Result<bool, TchError> {
    let fit = |tensor: &Tensor| {
        Ok::<bool, TchError>(
            tensor.device() == Device::Cpu && tensor.f_kind()? == kind && !tensor.requires_grad() && tensor.numel() > 0,
        )
    };
    Ok(fit(weight)? && bias.map_or(Ok(true), fit)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    fn error(found: &Tensor, expected: &Tensor) -> f64 {
        let expected = expected.to_kind(Kind::Double);
        let apart = (found.to_kind(Kind::Double) - &expected).abs().max().double_value(&[]);
        apart / expected.abs().max().double_value(&[]).max(1e-30)
    }

    fn exact(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
        let double = |tensor: &Tensor| tensor.to_kind(Kind::Double);
        double(x).linear(&double(weight), bias.map(double).as_ref())
    }

    /// All ways that a processor may have.
    const WAYS: [(Library, Option<i64>); 4] =
        [(Library::OneDnn, None), (Library::Blas, None), (Library::OneDnn, Some(2)), (Library::Blas, Some(2))];

    #[test]
    fn products_of_all_shapes_and_layouts_are_right_in_every_way() {
        tch::manual_seed(0);
        for outer in [vec![1], vec![7], vec![2, 3], vec![1, 45], vec![2, 1, 5]] {
            for (width, out) in [(1, 1), (3, 5), (16, 64), (65, 33), (1700, 9)] {
                let x = random(&[outer.clone(), vec![width]].concat());
                let (weight, bias) = (random(&[out, width]), random(&[out]));
                for (way, alike, kind) in WAYS.iter().flat_map(|way| {
                    [
                        (way, false, Kind::Float),
                        (way, true, Kind::Float),
                        (way, false, Kind::BFloat16),
                        (way, true, Kind::BFloat16),
                    ]
                }) {
                    let there = |tensor: &Tensor| tensor.to_kind(kind);
                    let (x, weight, bias) = (there(&x), there(&weight), there(&bias));
                    let allowed = if kind == Kind::Float { 1e-5 } else { 1e-2 };
                    let factor = Factor::by(&x, alike, *way).unwrap();
                    for bias in [None, Some(&bias)] {
                        let expected = exact(&x, &weight, bias);
                        let found = factor.times_transposed(&weight, bias).unwrap();
                        assert_eq!(found.size(), expected.size());
                        assert_eq!(found.kind(), kind);
                        assert!(error(&found, &expected) < allowed, "{way:?} {outer:?} {width} {out} {kind:?}");
                        let stored = weight.tr().contiguous();
                        assert!(error(&factor.times(&stored, bias).unwrap(), &expected) < allowed);
                        // Views are no reason for another result.
                        assert!(error(&factor.times(&weight.tr(), bias).unwrap(), &expected) < allowed);
                        assert!(error(&factor.times_transposed(&stored.tr(), bias).unwrap(), &expected) < allowed);
                    }
                }
            }
        }
    }

    #[test]
    fn widened_products_are_rounded_once() {
        tch::manual_seed(2);
        let (x, weight, bias) = (random(&[70, 96]), random(&[40, 96]), random(&[40]));
        let [x, weight, bias] = [x, weight, bias].map(|tensor| tensor.to_kind(Kind::BFloat16));
        let factor = Factor::by(&x, false, (Library::Blas, Some(64))).unwrap();
        let found = factor.times_transposed(&weight, Some(&bias)).unwrap();
        let exact = exact(&x, &weight, Some(&bias));
        // Half a unit in the last of 8 bits, and what f32 adds to it.
        let allowed = exact.abs() * (2f64.powi(-8) * 1.0001) + 1e-5;
        assert!(bool::try_from((found.to_kind(Kind::Double) - &exact).abs().le_tensor(&allowed).all()).unwrap());
    }

    #[test]
    fn sums_are_cut_into_equal_pieces_that_the_blas_adds_in_one_order() {
        for terms in 1..20_000 {
            let step = piece(terms);
            assert!((16..=TERMS).contains(&step) && step % 16 == 0);
            assert!((terms + step - 1) / step <= (terms + TERMS - 1) / TERMS, "{terms}: {step}");
        }
        assert_eq!([768, 769, 1600, 6400].map(piece), [768, 400, 544, 720]);
    }

    #[test]
    fn a_row_has_the_same_bits_among_any_number_of_rows() {
        // Measured on silicon with AVX-512 and oneDNN; elsewhere `cargo xtask bench invariance` says what holds.
        let library = Products::chosen().unwrap().library;
        #[cfg(target_arch = "x86_64")]
        let measured = library == Library::OneDnn && is_x86_feature_detected!("avx512f");
        #[cfg(not(target_arch = "x86_64"))]
        let measured = false;
        tch::manual_seed(3);
        let (x, weight) = (random(&[200, 1600]), random(&[320, 1600]));
        let stored = weight.tr().contiguous();
        let first = |rows: i64, alike: bool| {
            let few = x.narrow(0, 0, rows);
            let factor = Factor::by(&few, alike, (library, None)).unwrap();
            [factor.times_transposed(&weight, None).unwrap().get(0), factor.times(&stored, None).unwrap().get(0)]
        };
        let expected = first(200, false);
        for (rows, alike) in
            [(1, true), (2, false), (3, false), (5, false), (15, false), (16, false), (17, true), (100, false)]
        {
            let found = first(rows, alike);
            if measured {
                assert_eq!(found, expected, "{rows} rows by {library:?}");
            }
            for (found, expected) in found.iter().zip(&expected) {
                assert!(error(found, expected) < 1e-5, "{rows} rows by {library:?}");
            }
        }
    }

    #[test]
    fn parts_of_a_larger_tensor_are_multiplied_as_they_are() {
        tch::manual_seed(1);
        let (x, weight) = (random(&[9, 12]), random(&[40, 8]));
        let (x, weight) = (x.narrow(1, 2, 8), weight.narrow(0, 3, 20));
        let found = Factor::new(&x).unwrap().times_transposed(&weight, None).unwrap();
        assert!(error(&found, &exact(&x, &weight, None)) < 1e-5);
    }

    #[test]
    fn gradients_flow_where_they_are_asked_for() {
        let (x, weight, bias) = (random(&[4, 6]), random(&[6, 3]).set_requires_grad(true), random(&[3]));
        Factor::new(&x).unwrap().times(&weight, Some(&bias)).unwrap().sum(Kind::Float).backward();
        let expected = x.sum_dim_intlist([0].as_slice(), false, Kind::Float).unsqueeze(1).expand([6, 3], false);
        assert!(error(&weight.grad(), &expected) < 1e-5);
        let x = x.set_requires_grad(true);
        Factor::new(&x).unwrap().times_transposed(&weight.detach().tr(), None).unwrap().sum(Kind::Float).backward();
        assert!(x.grad().defined());
    }

    #[test]
    fn other_dtypes_and_shapes_that_do_not_fit() {
        let x = random(&[4, 6]).to_kind(Kind::Double);
        let weight = random(&[3, 6]).to_kind(Kind::Double);
        assert!(
            error(&Factor::new(&x).unwrap().times_transposed(&weight, None).unwrap(), &exact(&x, &weight, None))
                < 1e-12
        );
        let x = random(&[4, 6]);
        assert!(Factor::new(&x).unwrap().times_transposed(&random(&[3, 5]), None).is_err());
        assert!(Factor::new(&x).unwrap().times(&random(&[5, 3]), None).is_err());
        assert!(Factor::new(&x).unwrap().times_transposed(&random(&[3, 6]), Some(&random(&[4]))).is_err());
    }
}
