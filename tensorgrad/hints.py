"""The names of NumPy and PyTorch that are not ours: what to write here instead, or that it is left out.

`docs/names.md` shows the table; it is written by `python -m tensorgrad.hints`.
"""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

# What to write here | the names that are answered with it. x and y are tensors.
INSTEAD = """
x.reshape(shape) | view view_as reshape_as ravel unflatten resize resize_as as_strided atleast_1d atleast_2d \
    atleast_3d
x.reshape(-1) | flat
tg.moveaxis(x, i, j) | movedim swapaxes swapdims rollaxis
x.permute_dims(axes) | permute transpose
x + weight * (y - x) | lerp
x[...] = 0 | zero_
tg.eye(n) | identity
x.T | t adjoint mH H
tg.concat([x, y]) | cat concatenate hstack vstack dstack column_stack row_stack append block insert
tg.split(x, sections) | chunk tensor_split array_split hsplit vsplit dsplit split_with_sizes unbind unstack
tg.repeat(x, repeats=n) | repeat_interleave
x.expand_dims(axis) | unsqueeze newaxis
x.broadcast_to(shape) | expand expand_as broadcast_tensors broadcast_arrays
tg.flip(x, axis=i) | fliplr flipud rot90
tg.tril(tg.ones((n, n))) | tri tril_indices triu_indices mask_indices tril_indices_from triu_indices_from
x[...] * tg.eye(n) | diag diagflat diag_embed trace fill_diagonal
x[i, j] | index_select select narrow masked_select compress extract choose index
tg.take_along_axis(x, indices, axis=i) | gather take_along_dim
x[i, j] = value | put put_along_axis putmask place index_put index_fill index_copy scatter masked_scatter
tg.where(mask, value, x) | select_scatter copyto nan_to_num
tg.index_add(x, indices, source) | scatter_add scatter_reduce index_reduce
tg.sort(x) | msort kthvalue partition
tg.argsort(x) | argpartition lexsort
tg.nonzero(x) | argwhere flatnonzero nonzero_static
x.sum(axis) | trapezoid trapz nansum sum_to_size
x.mean(axis) | average nanmean
x.max(axis) | amax nanmax aminmax fmax cummax ptp
x.min(axis) | amin nanmin fmin cummin
[x.mean(), x.var()] | var_mean std_mean
tg.cumulative_sum(x, axis=i) | cumsum nancumsum
tg.maximum(x, y) | clamp_min
tg.minimum(x, y) | clamp_max
x.clip(min, max) | clamp hardtanh relu6
tg.add(x, y) | addcmul addcdiv addmm addmv addr baddbmm addbmm
tg.subtract(x, y) | sub rsub
tg.multiply(x, y) | mul
tg.divide(x, y) | div true_divide
tg.remainder(x, y) | mod fmod divmod modf frac
tg.pow(x, y) | power float_power
tg.negative(x) | neg
+x | positive
tg.abs(x) | absolute fabs
tg.sign(x) | sgn signbit
tg.reciprocal(tg.sqrt(x)) | rsqrt
tg.exp(x * math.log(2)) | exp2
tg.log(x) / math.log(10) | log10 log2
tg.logaddexp(x, y) | logaddexp2
x * tg.log(y) | xlogy
tg.sin(x) / tg.cos(x) | tan
tg.leaky_relu(x) | prelu threshold rrelu LeakyReLU PReLU RReLU
tg.round(x) | around rint trunc fix
tg.equal(x, y) | eq
tg.not_equal(x, y) | ne
tg.less(x, y) | lt
tg.less_equal(x, y) | le
tg.greater(x, y) | gt
tg.greater_equal(x, y) | ge
tg.bitwise_invert(x) | invert bitwise_not
tg.isinf(x) & (x > 0) | isposinf isneginf
np.allclose(x.numpy(), y.numpy()) | allclose isclose array_equal array_equiv testing
tg.matmul(x, y) | mm bmm mv dot vdot inner matvec vecmat vecdot chain_matmul
tg.outer(x, y) | ger kron
tg.sqrt(tg.sum(x * x)) | norm dist frobenius_norm pairwise_distance cdist pdist hypot
x / tg.sqrt(tg.sum(x * x, axis=-1, keepdims=True)) | normalize cosine_similarity renorm CosineSimilarity \
    PairwiseDistance
tg.zeros(shape) | new_zeros new_empty
tg.ones(shape) | new_ones
tg.full(shape, value) | fill new_full
tg.asarray(data) | from_numpy as_tensor tensor array asanyarray ascontiguousarray asfortranarray new_tensor new \
    scalar_tensor frombuffer fromiter asarray_chkfinite asmatrix
tg.uniform(shape) | random
tg.normal(x.shape) | randn_like
tg.uniform(x.shape) | rand_like
tg.random.default_generator.integers(low, high, shape) | randint randint_like
tg.random.default_generator.permutation(n) | randperm permutation shuffle
tg.uniform(shape) < p | bernoulli
tg.manual_seed(seed) | seed initial_seed get_rng_state set_rng_state
tg.linspace(start, stop, num) | logspace geomspace
tg.arange(start, stop, step) | range mgrid ogrid indices r_
tg.broadcast_to(x, shape=shape) | meshgrid ix_ cartesian_prod
x.astype(dtype) | float int double half long bool short byte char type type_as bfloat16
the name of a dtype, as in dtype="float32" | float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 \
    uint64 bool_ single longlong intp intc uint dtypes
x.copy() | clone
x.data | base storage untyped_storage data_ptr
x.numpy() | cpu tobytes tofile
x.to(backend) | cuda device to_device get_device ipu xpu mtia is_cuda is_cpu set_default_device \
    get_default_device
x.size | numel nelement
x.ndim | dim ndimension
x.shape | Size
x.dtype.itemsize | itemsize element_size
x.data.nbytes | nbytes
x.data.strides | strides stride storage_offset is_contiguous contiguous flags
x.requires_grad | is_leaf requires_grad_
x.node | grad_fn
x.detach() | detach_copy
tg.grad(fn) | gradient autograd func vmap
with tg.no_grad(): | inference_mode set_grad_enabled
tg.is_grad_enabled() | is_inference_mode_enabled
tg.detect_anomaly(model) | set_anomaly_enabled is_anomaly_enabled is_anomaly_check_nan_enabled register_hook \
    register_post_accumulate_grad_hook
tg.amp, or train.py --dtype | autocast GradScaler is_autocast_enabled set_autocast_enabled
tg.set_num_threads(n) | get_num_threads set_num_interop_threads get_num_interop_threads init_num_threads
tg.use_backend(name) | compile backends
isinstance(x, tg.Tensor) | is_tensor
x.dtype.kind == "f" | is_floating_point is_signed isdtype issubdtype
tg.save(model.state_dict(), path) | savez savez_compressed savetxt dump dumps
tg.load(path) | loadtxt fromfile genfromtxt
tg.softmax(x, axis=i) | Softmax Softmin softmin
tg.log_softmax(x, axis=i) | LogSoftmax
tg.sigmoid(x) | Sigmoid
tg.silu(x) | SiLU
tg.softplus(x) | Softplus
-tg.softplus(-x) | logsigmoid LogSigmoid
1 - tg.erf(x) | erfc
tg.nll_loss(log_p, targets) | NLLLoss
tg.cross_entropy(logits, targets) | CrossEntropyLoss
tg.linear_cross_entropy(x, weight, targets) | LinearCrossEntropyLoss
tg.mse_loss(x, y) | MSELoss
tg.mean(tg.abs(x - y)) | L1Loss l1_loss
tg.binary_cross_entropy_with_logits(x, y) | BCEWithLogitsLoss BCELoss binary_cross_entropy
tg.attention(q, k, v) | scaled_dot_product_attention MultiheadAttention multi_head_attention_forward
gpt.model.Block | Transformer TransformerEncoder TransformerEncoderLayer TransformerDecoder \
    TransformerDecoderLayer
optimizer.zero_grad() | zero_grad
model.modules() | named_modules children named_children get_submodule
model.named_buffers() | buffers
for module in model.modules(): | apply
x[targets], or tg.eye(n)[targets] | one_hot
a function | Identity Flatten Unflatten
a dict in an attribute | ModuleDict ParameterDict BufferDict
a list in an attribute | ParameterList
tg.Tensor(data), without requires_grad, in an attribute | Buffer register_buffer
nn.Parameter(data), in an attribute | register_parameter parameter
the functions of tg | functional
tg.normal and tg.uniform | init
tg.optim.clip_grad_norm(parameters, max_norm) | utils clip_grad_norm_
"""

# Other names for the arguments of functions: theirs -> ours, where the function takes that.
KEYWORDS = {
    "dim": "axis", "dims": "axes", "keepdim": "keepdims", "input": "x", "a_min": "min", "a_max": "max",
    "ddof": "correction", "unbiased": "correction", "newshape": "shape", "split_size_or_sections": "sections",
    "indices_or_sections": "sections", "is_causal": "causal", "attn_mask": "mask", "reps": "repetitions",
    "value": "constant", "constant_values": "constant", "shifts": "shift", "target": "targets", "k": "diagonal",
    "index": "indices", "size": "shape", "fill_value": "value", "tensors": "arrays",
    "dim0": "axes", "end": "stop", "steps": "num",
}  # fmt: skip

# What a small library leaves out, by kind: regular expressions for the names.
LEFT_OUT = {
    "complex numbers":
        "complex conj ^real ^imag ^angle$ ^polar$ cfloat cdouble chalf csingle ^isreal longdouble "
        "sort_complex",
    "convolutions, pooling and other vision":
        r"conv pool pixel grid_sampl affine_grid upsampl interpolate fold channel_?shuffle pad\dd$ Dropout\dd$ "
        r"dropout\dd$ feature_ local_?resp CrossMap Softmax2d correlate",
    "recurrent networks": "^(r)?nn_ lstm gru ^rnn",
    "normalizations other than layer_norm and rms_norm":
        r"batch_?norm instance_?norm group_?norm native_\w*norm norm_except local_",
    "sparse arrays":
        "sparse crow ccol col_indices row_indices coalesce to_dense dense_dim ^[hs]?spmm hsmm ^s?smm dsmm "
        "sspadd saddmm EmbeddingBag embedding_bag embedding_renorm",
    "quantized numbers": "quant ^q_ qscheme int_repr QInt QUInt qat$ fbgemm choose_qparams fake_",
    "random distributions":
        "multinomial binomial poisson geometric cauchy exponential log_?normal gumbel dirichlet gamma",
    "linear algebra":
        "^linalg$ cholesky ^det$ logdet slogdet ^eig symeig inv(erse)?$ pinverse ^lu lstsq ^qr$ ^svd pca_ "
        "solve lobpcg matrix_(exp|power|rank) orgqr ormqr geqrf nuclear_norm block_diag householder ^cross$",
    "special functions":
        "digamma lgamma polygamma erfinv ^i0 bessel igamma sinc ^logit$ ^(arc)?a?(sin|cos|tan)h?2?$ cbrt "
        "degrees radians rad2deg deg2rad heaviside copysign nextafter spacing frexp ldexp gcd lcm zeta hann "
        "hamming blackman bartlett kaiser special",
    "Fourier transforms": "fft stft",
    "statistics":
        "median quantile percentile hist bincount cov$ corrcoef digitize bucketize searchsorted interp$ mode$ "
        "nan(std|var|prod|arg|cum)",
    "sets and combinations": "unique intersect1d union1d setdiff setxor ^isin$ in1d combinations",
    "polynomials": "^poly ^roots$ vander ^unwrap$ ^ediff1d$",
    "products and differences along an axis": "cumprod cumulative_(prod|trap) logcumsum ^diff$ einsum_path",
    "dates, text and records":
        "date busday timedelta ^str char bytes_?$ rec(ord|array)?$ ^void ^object_? isnat record",
    "other losses": "loss kl_?div",
    "other activations":
        "^(celu|elu|selu|glu|mish|hard|softs|tanhshr|alpha_|threshold|bilinear|shrink|rrelu|relu6) "
        "AlphaDropout Bilinear AdaptiveLog",
    "other optimisers": r"^(ASGD|Ada\w+|LBFGS|Muon|NAdam|RAdam|RMSprop|Rprop|Sparse\w+|swa_utils|swap_in\w+)$",
    "bits": "bitwise_(left|right) shift$ packbits bitwise_count binary_repr base_repr byteswap little_endian",
}  # fmt: skip


def table() -> dict[str, str]:
    """Their name -> what to write here."""
    return {name: ours for ours, names in _rows() for name in names}


def _rows() -> list[tuple[str, list[str]]]:
    """What to write here, and the names that are answered with it."""
    pairs = (line.split("|") for line in INSTEAD.strip().splitlines())
    return [(ours.strip(), names.split()) for ours, names in pairs]


def left_out(name: str) -> str | None:
    """The kind of what is left out that the name belongs to."""
    return next((kind for kind, patterns in LEFT_OUT.items() if matches(name, patterns)), None)


def matches(name: str, patterns: str) -> bool:
    """Whether one of the regular expressions, separated by spaces, finds something in the name, in any case."""
    return any(re.search(pattern, name, re.IGNORECASE) for pattern in patterns.split())


def missing(
    where: str, name: str, known: Iterable[str], functions: Iterable[str] = (), methods: Iterable[str] = ()
) -> str:
    """The message for a name that is not there. known: those that are; functions: tensorgrad's; methods: a tensor's."""
    has_not = f"{where} has no {name!r}"
    if name.startswith("_"):
        return has_not
    ours = table()
    if name in functions:
        return f"{has_not}: here it is a function, tg.{name}"
    if name in methods:
        return f"{has_not}: here it is of a tensor, x.{name}"
    if name in ours:
        return f"{has_not}: here it is {ours[name]}"
    if name.endswith("_") and name[:-1] in {*known, *functions, *methods, *ours}:
        return f"{has_not}, in place: here it is x[...] = value, under no_grad()"
    near = difflib.get_close_matches(name, list(known), 1, cutoff=0.75)
    if near:
        return f"{has_not}; did you mean {near[0]!r}?"
    kind = left_out(name) or left_out(name.rstrip("_"))
    return f"{has_not}: {kind} are left out of this small library" if kind else has_not


def takes(named: Iterable[str], ours: list[str]) -> str:
    """What a function takes, for an error: "it takes x, axis; dim= is axis= here". named: the keywords of the call."""
    renamed = [f"; {key}= is {KEYWORDS[key]}= here" for key in named if key not in ours and KEYWORDS.get(key) in ours]
    tuples = "; the shape is one tuple" * (ours[:1] == ["shape"])
    return f"it takes {', '.join(ours)}{''.join(renamed)}{tuples}"


def page() -> str:
    """The text of docs/names.md."""
    lines = [f"| {', '.join(f'`{name}`' for name in names)} | {ours} |" for ours, names in _rows()]
    keys = [f"| `{theirs}=` | `{ours}=` |" for theirs, ours in KEYWORDS.items()]
    return "\n".join([
        "# If you know NumPy or PyTorch", "",
        "A function has the name that the Python array API standard gives it, and what belongs to training the name",
        "that PyTorch gives it. One thing has one name: another library's is answered by an error that says what to",
        "write here. This page is the table behind those errors, written by `python -m tensorgrad.hints`.", "",
        "| theirs | here |", "|---|---|", *lines, "",
        "## Arguments", "", "| theirs | here |", "|---|---|", *keys, "",
        "## Left out", "", "The library stays small: these kinds of functions are not here.", "",
        *(f"- {kind}" for kind in LEFT_OUT), "",
    ])  # fmt: skip


def main() -> None:
    """Write docs/names.md."""
    (Path(__file__).parents[1] / "docs" / "names.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
