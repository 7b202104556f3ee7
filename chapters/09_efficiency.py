# %% [markdown]
# # 09 Efficiency
#
# Two programs compute the same numbers, and one of them takes ten times as long. Why? In this chapter you count the
# work of an operation by hand, measure your machine, and say what time is possible before you run anything. Then you
# write softmax at three levels, from NumPy to a GPU, multiply matrices in blocks, and look at what a training step
# keeps in memory, and how it can keep less.
#
# ## What you will be able to do
#
# - count the operations and the bytes of a product, a softmax and a layer norm,
# - draw a roofline, and say from it what limits an operation,
# - explain why the same softmax is faster in one pass than in five,
# - multiply matrices in blocks, and say which part lies in which cache,
# - say what a step keeps for backward, and what recomputing costs,
# - explain what a fused operation saves.
#
# You need attention ([04b Attention](04b_attention.ipynb)) and the counter `tg.count` ([07
# Generation](07_generation.ipynb)). Times depend on the machine and on what else runs, so the text below never
# depends on a single one.

# %%
import itertools
import sys
import time
from collections import OrderedDict

import numba
import numpy as np
from course import ROOT, exercise, picture, same, show, show_lines
from exercises import efficiency as tests
from matplotlib.patches import Rectangle

import tensorgrad as tg
from gpt.config import GPTConfig
from gpt.fused import FusedGPT
from tensorgrad.backend.numba import macrokernel as products
from tensorgrad.backend.numba.mathematics import exp

rng = np.random.default_rng(0)
tg.use_backend("numba")
tg.set_num_threads(1)  # so that all contenders have one core

# %% [markdown]
# ## The idea
#
# A processor computes, and it waits for numbers from memory. It can do both at the same time. Say an operation needs
# $F$ arithmetic operations, and $B$ bytes have to come from memory or go there. The processor does at most $P$
# operations a second, its *peak*. ($10^9$ operations a second are called a GFLOP/s.) The memory delivers at most $W$
# bytes a second, its *bandwidth*, usually some GB/s. Then
#
# $$\text{time} \ge \max\left( \frac F P, \frac B W \right)$$
#
# Divide $F$ by this time, and write $I = F / B$, the **arithmetic intensity**, the operations for each byte:
#
# $$\text{operations a second} \le \min\left( P, \; \frac{F}{B / W} \right) = \min(P, \; I \cdot W)$$
#
# Drawn over $I$, this is a line that rises and then becomes flat, like a roof. It is called the **roofline**. Under
# the rising part, more operations cost nothing: the processor waits anyway. Only fewer bytes help. Under the flat
# part it is the other way round.
#
# ## Count by hand
#
# **A product** of $(m, k)$ and $(k, n)$ has $m n$ results. Each is a sum of $k$ products. Each number has to be read
# or written at least once, with 4 bytes:
#
# $$F = 2 m k n, \qquad B \ge 4 (m k + k n + m n), \qquad m = k = n: \; I \le \frac{2 n^3}{12 n^2} = \frac n 6$$
#
# **Softmax** of a row of $n$ numbers needs $n - 1$ comparisons for the maximum, then $n$ subtractions, $n$ times exp,
# $n - 1$ additions and $n$ divisions. A number is read and a result written:
#
# $$F = 5 n - 2, \qquad B \ge 8 n, \qquad I \le \frac 5 8$$
#
# **Layer norm** of a row: the mean takes $n - 1$ additions and a division. Then $n$ subtractions, $n$ squares, again
# $n$ operations for their mean, three for $1 / \sqrt{\text{variance} + \varepsilon}$, and $n$ each for this factor,
# the weight and the bias:
#
# $$F = n + n + n + n + 3 + 3 n = 7 n + 3, \qquad B \ge 8 n, \qquad I \le \frac{7 n + 3}{8 n} \approx \frac 7 8$$
#
# The intensity of a product grows with its size. That of softmax and layer norm never does. The library's counter
# counts what its plain code does:

# %%
side, rows, n = 512, 256, 1024
square, x = (rng.normal(size=shape).astype(np.float32) for shape in ((side, side), (rows, n)))
w, b = np.ones(n, np.float32), np.zeros(n, np.float32)


def flops(f, *arrays):
    with tg.count() as counted:
        f(*map(tg.Tensor, arrays))
    return counted.total.flops


same(flops(tg.matmul, square, square), 2 * side**3, "operations of a product, counted and by hand", 0)
same(flops(tg.softmax, x), rows * (5 * n - 2), "softmax", 0)
same(flops(tg.layer_norm, x, w, b), rows * (7 * n + 3), "layer norm", 0)
same(2 * side**3 / (4 * 3 * side**2), side / 6, "the intensity of a square product")
print(f"operations for each byte: product of 512 x 512 {side / 6:.1f}, matrix times vector "
      f"{2 * side**2 / (4 * (side**2 + 2 * side)):.1f}")

# %% [markdown]
# ## Measure the machine
#
# For the peak we take the fastest thing we know, a large product. For the bandwidth we add one array to another,
# again and again: 8 bytes are read and 4 written for each number. Small arrays stay in a **cache**, a small and fast
# memory beside the processor. There are usually three, each larger and slower than the one before.
#
# `numba.njit` compiles a Python function to machine code when it is first called. `fastmath` allows it to add numbers
# in another order, which it needs in order to add several at once.

# %% tags=["varies"]
def fastest(f, times=7):
    """The shortest time of a call in seconds: other programs only make it longer. The first call is not counted."""
    f()
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        f()
        found.append(time.perf_counter() - begin)
    return min(found)


@numba.njit(fastmath=True, error_model="numpy")
def add(x, y, times):
    for _ in range(times):
        for i in range(x.size):
            y[i] += x[i]


square_t = tg.Tensor(square)
peak = 2 * side**3 / fastest(lambda: tg.matmul(square_t, square_t), 20)
sizes, speeds = 2 ** np.arange(11, 25), []
for size in sizes:
    a1, a2, times = np.ones(size, np.float32), np.ones(size, np.float32), max(1, 2**22 // size)
    speeds.append(12 * size * times / fastest(lambda a1=a1, a2=a2, times=times: add(a1, a2, times)))
bandwidth = speeds[-1]
print(f"peak {peak / 1e9:.0f} GFLOP/s, bandwidth {bandwidth / 1e9:.0f} GB/s")

figure, ax = picture(7, 3)
ax.loglog(8 * sizes / 2**10, np.array(speeds) / 1e9, "o-")
ax.set(xlabel="size of both arrays, KB", ylabel="GB/s", title="the nearer the memory, the faster")

# %% [markdown]
# The line goes down in steps: at each, the arrays no longer fit into one of the caches. At the right end they come
# from memory. So there are two ways to need less time for bytes: move fewer, or take them from a nearer place.
#
# ## One operation at three levels
#
# ### Level 1: mathematics
#
# Softmax in NumPy is one line for each formula. But each line is a pass over the whole array. The maximum reads 4
# bytes a number, the subtraction reads and writes 8, exp 8, the sum 4, the division 8: together 32 bytes, where 8
# would do. The intensity is $5 / 32$ in place of $5 / 8$.

# %%
def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)

# %% [markdown]
# ### Level 2: compiled
#
# The same, a row at a time. A row of 1024 numbers is 4 KB. It stays in the first cache during all passes, so memory
# sees each number once on its way in and once on its way out. In this function, `exp` is the library's: a compiler
# can do several steps of a loop at once, but not if the loop calls a function from elsewhere, as `np.exp` does here.

# %%
@numba.njit(fastmath=True, error_model="numpy")
def softmax_rows(x, y):
    for i in range(x.shape[0]):
        top, total = x[i].max(), np.float32(0)
        for j in range(x.shape[1]):
            y[i, j] = exp(x[i, j] - top)
            total += y[i, j]
        for j in range(x.shape[1]):
            y[i, j] /= total

# %% [markdown]
# ### Level 3: a GPU
#
# A GPU has thousands of small processors, and its programs are written in CUDA, a kind of C++. The function `softmax`
# below, a **kernel**, is run by many **threads** at the same time. The threads come in **blocks**. Here each block
# has one row, number `blockIdx.x`. Each of its threads takes some numbers of the row (`visit` hands them out), and
# finds their maximum. `block_max` then makes one maximum of those of all threads. The sum goes the same way. `T` is
# the type of the numbers, `Real` that of the sums.

# %%
show_lines("tensorgrad/backend/cupy/softmax.cu", "// The maximum of a row", 26, "cuda")

# %% [markdown]
# Is it right? With an NVIDIA GPU, `tg.use_backend("cupy")` runs it. Without one, the tests of the library compile
# this same file with an ordinary C++ compiler, and run its threads one after the other. That says nothing about its
# speed, but it shows whether the numbers are right:

# %% tags=["varies"]
sys.path.insert(0, str(ROOT / "tests" / "tensorgrad" / "backend" / "cupy"))
from emulated_cuda import COMPILER, emulated_gpu  # noqa: E402

if COMPILER:
    with emulated_gpu():
        same(tg.softmax(tg.asarray(x[:8])).numpy(), softmax(x[:8]), "softmax in CUDA, run on the CPU", 1e-6)
else:
    print("there is no C++ compiler here: the kernel is only shown")

# %% [markdown]
# And the two others, side by side, for 16 MB of numbers:

# %% tags=["varies"]
large = rng.normal(size=(4096, n)).astype(np.float32)
result, large_t = np.empty_like(large), tg.Tensor(large)
levels = {
    "NumPy, five passes": lambda: softmax(large),
    "compiled, one pass": lambda: softmax_rows(large, result),
    "the library, compiled": lambda: tg.softmax(large_t),
}
seconds = {name: fastest(f) for name, f in levels.items()}
same(result, softmax(large), "softmax, compiled", 1e-5)
for name, taken in seconds.items():
    print(f"{name:<22} {1e3 * taken:>7.2f} ms, {8e-9 * large.size / taken:>5.1f} GB/s, if each number moved twice")

# %% [markdown]
# Now all of them under the roof. A point says how many operations a second an operation does, at its intensity.

# %% tags=["varies"]
many = rng.normal(size=(6144, 6144)).astype(np.float32)  # more than the caches hold
many_t, one_t = tg.Tensor(many), tg.Tensor(many[:1])
points = {
    "product": (side / 6, peak),
    "matrix times vector": (0.5, 2 * many.size / fastest(lambda: tg.linear(one_t, many_t))),
    "softmax, NumPy": (5 / 32, 5 * large.size / seconds["NumPy, five passes"]),
    "softmax, compiled": (5 / 8, 5 * large.size / seconds["compiled, one pass"]),
}
figure, ax = picture(7, 3.6)
line = np.geomspace(0.05, 500, 100)
ax.loglog(line, np.minimum(peak, line * bandwidth) / 1e9, color="#444444", label="the roof")
for name, (x_place, speed) in points.items():
    ax.plot(x_place, speed / 1e9, "o", markersize=9, label=name)
ax.set(xlabel="operations for each byte", ylabel="GFLOP/s", title="a roofline")
ax.legend()

# %% [markdown]
# The product is far to the right. The others are under the slope, where bytes decide. From NumPy to the compiled
# softmax, the point moves to the right, since fewer bytes move, and up. A point well below the roof says that
# something else takes time, such as exp, which is one operation in our count and many for the processor. A point
# above it says that its numbers came from a cache.
#
# ## A product in blocks
#
# A product of $n \times n$ matrices does $n^3$ multiplications, and each needs a number of $a$ and one of $b$. If all
# of them came from memory, this would be $2 n^3$ reads, 4 bytes for each operation. So the *order* of the work
# decides: how often is a number used before it has to leave the cache?
#
# Divide the matrices into blocks of $s \times s$. There are $(n / s)^3$ pairs of blocks to multiply. Each pair reads
# $2 s^2$ numbers, and then all its work is done in the cache:
#
# $$\left( \frac n s \right)^3 \cdot 2 s^2 = \frac{2 n^3}{s}$$
#
# That is $s$ times fewer reads. We check it with a model of a cache. Memory comes in **lines** of 64 bytes, 16
# numbers of float32. Our cache holds 64 lines. If it is full, the line that was not used for the longest time has to
# leave. To read a number whose line is not there is a *miss*.

# %%
def misses(places, n_lines=64):
    """How many of these reads, of numbers at places in memory, miss a cache of so many lines."""
    cache, missed = OrderedDict(), 0
    for place in places:
        line = place // 16
        missed += line not in cache
        cache[line] = None
        cache.move_to_end(line)
        if len(cache) > n_lines:
            cache.popitem(last=False)
    return missed


def reads(n, s):
    """The places that a product in blocks of s reads: of a from 0, of b after it. With s = n, the plain loops."""
    for top, left, first in itertools.product(range(0, n, s), repeat=3):
        for i, j, k in itertools.product(range(s), repeat=3):
            yield (top + i) * n + first + k
            yield n * n + (first + k) * n + left + j


N = 64
plain, in_blocks = misses(reads(N, N)), misses(reads(N, 16))
same(plain, N**3 + N**2 / 16, "misses of plain loops: each number of b, each time; each line of a once", 0)
same(in_blocks, 2 * N**3 / 16 / 16, "misses in blocks of 16: the formula, in lines of 16 numbers", 0)
print(f"{plain:,} misses become {in_blocks:,}: {plain / in_blocks:.0f} times fewer")

# %% [markdown]
# Why 128 times fewer, and not $s = 16$? The formula counts numbers, the cache lines. The plain loops go down the
# columns of $b$ and use one number of each line that they fetch; the blocks use all 16. On the other hand, the row of
# $a$ stays in the cache in the plain loops, too, which halves their misses: $16 \cdot 16 / 2 = 128$.
#
# A real product does this several times, once for each cache. These are the words of BLIS, a library of products:
#
# - The **microkernel** computes a small piece of the result, MR rows and NR columns. Its sums stay in
#   **registers**, the few places inside the processor in which it computes. Registers are nearer than any cache.
# - To **pack** is to copy a block of $b$ in the order in which the microkernel reads it. It then reads memory from
#   beginning to end, and every line is used as a whole.
# - A **panel** is the part of the packed block for one piece: NR columns.
# - The **macrokernel** goes through a block of $c$, piece by piece: the two loops around the microkernel. Three more
#   loops around it choose the blocks so that each stays in its cache.

# %%
def pack(block, nr):
    """A block of b (k, n) as panels (n / nr, k, nr)."""
    return np.ascontiguousarray(block.reshape(len(block), -1, nr).swapaxes(0, 1))


def microkernel(rows, panel):
    """MR rows of a times a panel."""
    sums = np.zeros((len(rows), panel.shape[1]))
    for k in range(len(panel)):  # of MR + NR numbers, MR x NR products are made
        sums += np.outer(rows[:, k], panel[k])
    return sums


def macrokernel(block, panels, c, mr, nr):
    for p, panel in enumerate(panels):  # stays in the first cache while all rows of the block pass by
        for top in range(0, len(block), mr):
            c[top : top + mr, p * nr : (p + 1) * nr] += microkernel(block[top : top + mr], panel)


def product(a, b, mr=4, nr=8, mc=16, kc=32, nc=32):
    c = np.zeros((len(a), b.shape[1]))
    for left in range(0, b.shape[1], nc):
        for first in range(0, len(b), kc):
            panels = pack(b[first : first + kc, left : left + nc], nr)  # stays in the third cache
            for top in range(0, len(a), mc):
                block = a[top : top + mc, first : first + kc]  # stays in the second cache
                macrokernel(block, panels, c[top : top + mc, left : left + nc], mr, nr)
    return c


a, b = rng.normal(size=(64, 96)), rng.normal(size=(96, 64))
same(product(a, b), a @ b, "a product in blocks")

# %%
figure, (left, right) = picture(10, 3.4, columns=2, width_ratios=[2.2, 1])
for x_place, y_place, width, height, name in ((0, 0, 96, 64, "a"), (120, 0, 64, 96, "b"), (208, 0, 64, 64, "c")):
    left.add_patch(Rectangle((x_place, y_place), width, height, facecolor="#f2f2f2", edgecolor="#777777"))
    left.text(x_place + width / 2, -5, name, ha="center")
colors = {"block of a: second cache": "#f6d68c", "MR rows of a": "#e69f00",
          "packed block of b: third cache": "#9fd0ee", "one panel of b: first cache": "#0072b2",
          "a piece of c: registers": "#d55e00"}  # fmt: skip
parts = ((32, 16, 32, 16), (32, 20, 32, 4), (152, 32, 32, 32), (160, 32, 8, 32), (248, 20, 8, 4))
for (name, color), (x_place, y_place, width, height) in zip(colors.items(), parts, strict=True):
    left.add_patch(Rectangle((x_place, y_place), width, height, facecolor=color, label=name))
left.set(xlim=(-5, 280), ylim=(135, -14), aspect="equal")
left.axis("off")
left.legend(loc="lower left", fontsize=8, ncols=2)
order = np.empty(4 * 16, int)
order[pack(np.arange(64).reshape(4, 16), 8).ravel()] = np.arange(64)
right.imshow(order.reshape(4, 16))
for (i, j), place in np.ndenumerate(order.reshape(4, 16)):
    right.text(j, i, place, ha="center", va="center", fontsize=7, color="white" if place > 32 else "black")
right.set(title="a packed block", xticks=[], yticks=[])
right.grid(False)

# %% [markdown]
# On the left, the parts that are in use at one moment. The piece of $c$ stays in registers while the microkernel goes
# along the rows of $a$ and down the panel. Then come the next rows, with the same panel; after the last rows of the
# block, its first rows with the next panel. On the right, a block of 4 x 16 with NR = 8: the numbers say in which order
# it is packed.
#
# Does the order matter on your machine? Here are the three loops of the definition, compiled, and the library's
# product. Both do the same multiplications.

# %% tags=["varies"]
@numba.njit(fastmath=True, error_model="numpy")
def by_definition(a, b, c):
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            for k in range(a.shape[1]):
                c[i, j] += a[i, k] * b[k, j]


for name, f in {
    "by definition": lambda: by_definition(square, square, np.zeros_like(square)),
    "the library": lambda: tg.matmul(square_t, square_t),
}.items():
    speed = 2 * side**3 / fastest(f)
    print(f"{name:<14} {speed / 1e9:>6.1f} GFLOP/s")

# %% [markdown]
# ## What a step keeps in memory
#
# Backward needs results of forward (chapter 00b). Take a chain of MLPs with a residual stream,
# $x \leftarrow x + W_2\,\text{gelu}(W_1 x)$. The first product keeps its input, $C$ numbers for each token. The GELU
# keeps its input, $4 C$. The second product keeps its input, $4 C$. The addition keeps nothing. Together $9 C$
# numbers a token, for each block. We go through the tape and add up what its nodes keep:

# %%
def kept(result, given):
    """The bytes of all arrays that a graph keeps for its backward, without those that were given."""
    found, waiting, arrays = set(), [result.edge[0]], {}
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            for array in tg.autograd.saved_arrays(node.saved()):
                whole = array if array.base is None else array.base  # a view keeps the whole array
                arrays[id(whole)] = whole.nbytes
            waiting += [edge[0] for edge in node.parents if edge is not None]
    return sum(n_bytes for name, n_bytes in arrays.items() if name not in {id(t.data) for t in given})


n_blocks, n_tokens, C = 6, 256, 32
start = tg.Tensor(rng.normal(size=(n_tokens, C)).astype(np.float32), requires_grad=True)
shapes = [(4 * C, C), (C, 4 * C)] * n_blocks
weights = [tg.Tensor(rng.normal(size=shape).astype(np.float32) / 10, requires_grad=True) for shape in shapes]


def mlp(x, w1, w2):
    return tg.linear(tg.gelu(tg.linear(x, w1)), w2)


def recomputed(x, w1, w2):
    return tg.checkpoint(mlp, x, w1, w2)


def chain(block):
    x = start
    for w1, w2 in zip(weights[::2], weights[1::2], strict=True):
        x = x + block(x, w1, w2)
    return x


unit = 4 * n_tokens * C  # bytes of C numbers for each token
same(kept(chain(mlp), weights) / unit, 9 * n_blocks, "kept by a chain of MLPs, in units of C, and 9 for each block", 0)

# %% [markdown]
# A model of $L$ blocks keeps $L$ times as much as one. **Recomputing**, or *activation checkpointing*, keeps only the
# input of each block, $C$ numbers. When backward comes to a block, it first runs its forward a second time, uses what
# that keeps, and forgets it. What is the price? Backward has two products for each product of forward, one for each
# operand. So a step has 3 parts, and with a second forward 4:

# %%
same(kept(chain(recomputed), weights) / unit, n_blocks, "kept with recomputing: 1 for each block", 0)
work, gradients, held = {}, {}, {}
for name, block in {"kept": mlp, "recomputed": recomputed}.items():
    start.grad = None
    with tg.count() as counted:
        chain(block).sum().backward()
    work[name], gradients[name] = counted.total.matmul_flops, start.grad
    with tg.record() as steps:
        chain(block).sum().backward()
    held[name] = np.array([sum(step["memory"].values()) for step in steps.steps]) / unit
same(work["recomputed"] / work["kept"], 4 / 3, "operations in products, recomputed / kept", 0.001)
same(gradients["recomputed"], gradients["kept"], "the gradient of the input", 0)
print(f"at most {held['kept'].max():.0f} units are held, with recomputing {held['recomputed'].max():.0f}")

figure, ax = picture(7, 3)
for name, units in held.items():
    ax.plot(np.linspace(0, 1, len(units)), units, label=name)
ax.set(xlabel="progress of the step", ylabel="memory held, in units", ylim=(0, None))
ax.legend()

# %% [markdown]
# The first line is a mountain: it rises during forward and falls during backward. (It does not come down to 0: the
# gradients of the weights stay.) With recomputing it stays low. The small peaks are the blocks, one at a time:
# computed and forgotten in forward, computed again in backward.
#
# ## Fused against plain
#
# A **fused** operation does what several would, without writing what is between them. The loss of a language model is
# an example. Between the last product and the loss are the logits, one for each token of the vocabulary, at each
# position. Backward needs as many gradients. `tg.linear_cross_entropy` computes the logits of a few positions, turns
# them at once into their gradients, computes from these a part of the gradients of its operands, and takes the next
# few.
#
# In attention, the scores of all pairs of tokens are between (chapter 04b), $T^2$ numbers for a head. The fused
# operation keeps only its operands, its result, and a number for each row.

# %%
V, T, D = 2048, 256, 32
targets, table = rng.integers(V, size=512), tg.Tensor(rng.normal(size=(V, D)).astype(np.float32), requires_grad=True)
hidden = tg.Tensor(rng.normal(size=(512, D)).astype(np.float32), requires_grad=True)
mask = np.where(np.tri(T), 0, -np.inf).astype(np.float32)
q, k, v = (tg.Tensor(rng.normal(size=(1, 1, T, D)).astype(np.float32), requires_grad=True) for _ in range(3))
pairs = {
    "loss": (lambda: tg.cross_entropy(tg.linear(hidden, table), targets),
             lambda: tg.linear_cross_entropy(hidden, table, targets)),
    "attention": (lambda: (tg.softmax(q @ k.mT * D**-0.5 + mask) @ v).sum(),
                  lambda: tg.attention(q, k, v, causal=True).sum()),
}  # fmt: skip
for name, (plain, fused) in pairs.items():
    moved = []
    for f in (plain, fused):
        with tg.count() as counted:
            f().backward()
        moved.append(counted.total.bytes / 1e6)
    same(fused(), plain(), f"{name}, fused and plain", 1e-4)
    print(f"{name:<9} keeps {kept(plain(), []) / 1e6:>5.2f} MB, fused {kept(fused(), []) / 1e6:>5.2f}; "
          f"moves {moved[0]:>5.1f} MB, fused {moved[1]:>5.1f}")

# %% [markdown]
# What "moves" are the operands and results of all operations, forward and backward. Inside a fused operation numbers
# move, too, but a few at a time, in a cache. What the fused loss keeps are its operands and their gradients, which it
# has already computed.
#
# ## The library's code
#
# The product on one thread, and its macrokernel. The loops are those of our `product`; the rest is for edges, where
# fewer than MR rows or NR columns are left (a few columns are computed as dot products), and for matrices whose
# rows do not lie side by side in memory:

# %%
show(products.gemm)
show(products.macrokernel)

# %% [markdown]
# `tg.levels` runs an operation at all levels that your machine has, forward and backward, and compares the results.
# `tg.roofline` does for all operations of a training step what we did by hand: it counts, and measures the times and
# the roof. The column `roof` says what limits an operation, and `of roof` how near it comes to this limit. Here is a
# step of a small GPT, with the slowest operations. (The dashed line is the roof for arrays that stay in a cache.)

# %% tags=["varies"]
print(tg.levels(tg.softmax, large[:512]), end="\n\n")
model = FusedGPT(GPTConfig(vocab_size=512, block_size=64, n_layer=2, n_head=4, n_embd=64))
tokens = rng.integers(512, size=(2, 4, 64))
found = tg.roofline(lambda: model.loss(*tokens).backward(), rounds=5)
print(found.table(6))
found.plot(picture(8, 4.5)[1], n_labels=6)

# %% [markdown]
# From a terminal, `python -m tensorgrad roofline` shows both.
#
# ## The same numbers
#
# Softmax at all levels, and the products, in 64 bits. The compiled backend multiplies in blocks, and the plain one
# leaves it to NumPy. Then what the library's roofline counts.

# %%
(row,) = tg.roofline(lambda: tg.softmax(tg.Tensor(x)), rounds=1).rows
same([row.flops, row.bytes], [rows * (5 * n - 2), 8 * rows * n], "operations and bytes of a softmax", 0)
x, out = rng.normal(size=(50, 300)), np.empty((50, 300))
softmax_rows(x, out)
for backend in ("numpy", "numba"):
    with tg.use_backend(backend):
        same(out, tg.softmax(tg.Tensor(x)), f"softmax, {backend}", 1e-12)
        same(product(a, b), tg.matmul(tg.Tensor(a), tg.Tensor(b)), f"a product, {backend}", 1e-12)

# %% [markdown]
# ## Mistakes that people make
#
# **Measuring the first call.** A compiled function is compiled when it is called first, and arrays get their memory
# when they are first written:

# %% tags=["varies"]
@numba.njit
def total(x):
    result = 0.0
    for value in x:
        result += value
    return result


for call in ("first", "second"):
    begin = time.perf_counter()
    total(x[0])
    print(f"{call:<6} call: {1e3 * (time.perf_counter() - begin):>8.3f} ms")

# %% [markdown]
# **Twice the bytes by accident.** One array of 64 bits is enough, and NumPy makes the result 64 bits wide, too:

# %%
narrow = np.ones((512, 512), np.float32)
for name, factor in {"np.float32": np.ones(512, np.float32), "the default": np.ones(512)}.items():
    y = narrow * factor
    print(f"times np.ones, {name:<11}: {y.dtype}, {y.nbytes / 2**20:.0f} MB")

# %% [markdown]
# **Making the wrong part faster.** If an operation takes the share $p$ of the time, and becomes $r$ times as fast,
# the whole takes $1 - p + p / r$ of its time. (This is called Amdahl's law.) Measure the shares first:

# %%
for p in (0.05, 0.5, 0.9):
    print(f"{p:.0%} of the time, made 10 times as fast: the whole is {1 / (1 - p + p / 10):.2f} times as fast, "
          f"and at most {1 / (1 - p):.2f} times")

# %% [markdown]
# ## Exercises
#
# The tests are in [`exercises/efficiency.py`](exercises/efficiency.py), one possible answer in
# [`solutions/efficiency.py`](solutions/efficiency.py).
#
# **1.** What time does an operation need at least, and what decides?

# %%
def least_time(flops, n_bytes, peak, bandwidth):
    """Return the seconds, and "operations" or "bytes"; peak in operations, bandwidth in bytes a second."""
    ...


exercise(least_time, tests.least_time)

# %% [markdown]
# **2.** A cache should hold three square blocks of float32 at once, one of each matrix. How large may the blocks be?

# %%
def largest_block(cache_bytes):
    """Return the largest whole number s for which three blocks of s x s fit."""
    ...


exercise(largest_block, tests.largest_block)

# %% [markdown]
# **3.** Layer norm needs mean and variance. Compute both in *one* pass, for numbers that come one by one. (The mean
# of $x^2$ minus the square of the mean loses its digits if the numbers are far from 0.) Let $x$ be number $n$, and
# $d = x - \text{mean}$. Then the mean grows by $d / n$, and the sum of squares around the mean by $d$ times
# $x - \text{the new mean}$.

# %%
def mean_and_variance(numbers):
    """Return the mean, and the mean of the squared distances from it; numbers can be read only once."""
    ...


exercise(mean_and_variance, tests.mean_and_variance)

# %% [markdown]
# ## What you can use now
#
# `tg.roofline`, `tg.levels`, `tg.checkpoint` (recompute a part of the graph in backward), `tg.linear`,
# `tg.linear_cross_entropy`, and the parts of the compiled product:
# `tensorgrad.backend.numba.macrokernel`, `tensorgrad.backend.numba.mathematics.exp`.
#
# ## Sources
#
# - Samuel Williams, Andrew Waterman and David Patterson, [Roofline: an insightful visual performance
#   model](https://doi.org/10.1145/1498765.1498785), 2009.
# - Kazushige Goto and Robert van de Geijn, [Anatomy of high-performance matrix
#   multiplication](https://doi.org/10.1145/1356052.1356053), 2008, and Field Van Zee and Robert van de Geijn,
#   [BLIS](https://doi.org/10.1145/2764454), 2015: blocks, packing, and the words for them.
# - Tianqi Chen and others, [Training deep nets with sublinear memory cost](https://arxiv.org/abs/1604.06174), 2016:
#   recomputing.
# - Tri Dao and others, [FlashAttention](https://arxiv.org/abs/2205.14135), 2022, and Pin-Lun Hsu and others, [Liger
#   kernel](https://arxiv.org/abs/2410.10989), 2024: fused attention and a fused loss.
#
# Next: [10 Quantisation](10_quantization.ipynb), in which a weight has fewer bytes.
