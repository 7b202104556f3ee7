# %% [markdown]
# # 12 Parallel
#
# The gradient of a batch is a sample: the more rows (texts) it has, the less it depends on chance. Large models are
# trained with large batches. At some point a batch no longer fits into the memory, or takes too long on one machine.
# Both problems have the same answer: divide the batch. This chapter divides one gradient in time (*accumulation*) and
# in space (several processes), and shows that neither changes the numbers.
#
# ## What you will be able to do
#
# - show that the mean over a batch is a mean of means, and when it is not,
# - accumulate gradients over several small batches,
# - write an all-reduce on a ring, and count what it sends,
# - train with two replicas that end with exactly the weights of one process,
# - read [`tensorgrad/distributed.py`](../tensorgrad/distributed.py).
#
# You need chapters [00](00_gradients.ipynb) and [05](05_pretraining.ipynb).

# %%
import queue
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from course import exercise, picture, same, show
from exercises import parallel as tests

import tensorgrad as tg
from gpt.model import GPT
from gpt.train.step import accumulate_gradients

rng = np.random.default_rng(0)

# %% [markdown]
# ## The idea
#
# The loss of a batch of $N$ rows is the mean of the rows' losses. A derivative of a sum is the sum of the
# derivatives, so the gradient of the batch is the mean of the rows' gradients $g_i$. Divide the rows into $m$ equal
# parts of $n = N / m$ rows:
#
# $$\frac1N \sum_{i=1}^{N} g_i = \frac1N \sum_{j=1}^{m} \sum_{i \in \text{part } j} g_i
#   = \frac{n}{N} \sum_{j=1}^{m} \left( \frac1n \sum_{i \in \text{part } j} g_i \right) = \frac1m \sum_{j=1}^{m} G_j$$
#
# where $G_j$ is the mean gradient of part $j$. In words: **the mean over the batch is the mean of the parts' means**.
# No part needs the rows of another. It does not matter *when* the parts are computed, nor *where*; only at the end
# $m$ arrays have to be added.
#
# Our example has 12 inputs, 12 weights and one output, $y = \tanh(x \cdot w)$, with a squared error. By the rules of
# chapters 00 and 00b, its gradient takes two lines:

# %%
n_in, N = 12, 32
w_true = rng.normal(size=n_in)
X = rng.normal(size=(4096, n_in))
target = np.tanh(X @ w_true) + 0.1 * rng.normal(size=4096)


def loss_of(w, rows):
    return ((np.tanh(X[rows] @ w) - target[rows]) ** 2).mean()


def gradient(w, rows):
    """The gradient of the mean loss over some rows, (n_in,)."""
    y = np.tanh(X[rows] @ w)
    return X[rows].T @ (2 * (y - target[rows]) * (1 - y**2)) / len(rows)


w = rng.normal(size=n_in)
rows = np.arange(N)
h = 1e-6
by_differences = [(loss_of(w + h * e, rows) - loss_of(w - h * e, rows)) / (2 * h) for e in np.eye(n_in)]
same(by_differences, gradient(w, rows), "central differences, and the gradient", tolerance=1e-8)

per_row = np.array([gradient(w, [i]) for i in rows])
same(per_row.mean(axis=0), gradient(w, rows), "the mean of 32 gradients of one row, and the gradient of the batch")
same(sum(part.sum(axis=0) for part in np.split(per_row, 4)) / N, gradient(w, rows), "the sum of 4 sums, divided by 32")
means = [gradient(w, part) for part in np.split(rows, 4)]
same(np.mean(means, axis=0), gradient(w, rows), "the mean of 4 means")

# %% [markdown]
# **If the parts are unequal**, the factor $n / N$ is different for each part and stays inside the sum. Each mean then
# counts by its number of rows $n_j$:
#
# $$\frac1N \sum_{i=1}^{N} g_i = \sum_{j=1}^{m} \frac{n_j}{N} \, G_j$$

# %%
parts = np.split(rows, [20, 27])  # 20, 7 and 5 rows
same(sum(len(part) / N * gradient(w, part) for part in parts), gradient(w, rows), "means weighted by their rows")
plain = np.mean([gradient(w, part) for part in parts], axis=0)
print(f"the plain mean of the three is wrong by up to {abs(plain - gradient(w, rows)).max():.3f}")

# %% [markdown]
# ## In time: gradient accumulation
#
# A training step needs most of its memory for *activations*: results that the forward pass keeps for the backward
# pass. They grow with the number of rows. The gradient does not; it has the size of the weights. So we compute one
# part, add its gradient to a sum, free the part's memory, and go on. A part is called a **micro-batch**.
#
# The tape does the adding already: chapter 00 showed that a second `backward()` adds to `.grad`. We only have to
# divide each loss by the number of parts, and to update the weights once, after the last part:

# %%
w_t = tg.Tensor(w, requires_grad=True)
for part in np.split(rows, 4):
    error = tg.tanh(tg.matmul(tg.Tensor(X[part]), w_t)) - tg.Tensor(target[part])
    ((error**2).mean() / 4).backward()  # adds to w_t.grad
same(w_t.grad, gradient(w, rows), "the gradient accumulated over 4 micro-batches, and that of the batch")

# %% [markdown]
# ## In space: all-reduce
#
# Now take $p$ processes. (A process is a running program with its own memory; it may be on another machine.) Each has
# a copy of the weights, and is therefore called a **replica**, and a part of the rows. Each computes the gradient of
# its part, at the same time. Then all need the *sum*, so that all make the same update and stay equal. The operation
# "everyone gives an array, everyone gets the sum" is called **all-reduce**.
#
# The obvious way: all send to one, which adds, and sends the sum back. But then one process receives and sends
# $p - 1$ arrays each, while the others wait. With $p = 100$ that is slow. A better way lets all work equally: put the
# processes in a ring, in which each sends only to its right neighbour and receives from its left, and cut the array
# into $p$ chunks.
#
# 1. **Reduce-scatter**, $p - 1$ steps. In each step everyone sends one chunk to the right and adds the chunk that
#    comes from the left to its own. A chunk that travels the ring collects everybody's contribution. At the end each
#    process has *one* chunk that is complete.
# 2. **All-gather**, $p - 1$ steps. The complete chunks travel on, and are stored in place of the incomplete ones.
#
# In each of the $2 (p - 1)$ steps, a process sends one chunk. If the array has $n$ numbers, a chunk has $n / p$:
#
# $$\text{sent} = 2 (p - 1) \cdot \frac{n}{p} = 2 n \left( 1 - \frac1p \right) < 2 n$$
#
# That is the point: however many processes there are, each sends less than twice its array. In the code, `rank` is
# the place of a process in the ring. In the first step each sends the chunk with its own number, and afterwards
# always the chunk that it has just received, which is one number lower (modulo `size`).

# %%
def ring_all_reduce(x, rank, size, send, receive, after_step=lambda x: None):
    """Replace x (n,) by its sum over all members of the ring; rank is the place of this one, 0 to size - 1."""
    chunks = np.array_split(x, size)  # views: writing into a chunk writes into x
    for step in range(size - 1):
        send(chunks[(rank - step) % size].copy())
        chunks[(rank - step - 1) % size] += receive()
        after_step(x)
    for step in range(size - 1):
        send(chunks[(rank - step + 1) % size].copy())
        chunks[(rank - step) % size][:] = receive()
        after_step(x)


def in_ring(size, work, patience=60):
    """Run work(rank, send, receive) for every member at the same time, in threads; return their results."""
    inbox = [queue.Queue() for _ in range(size)]

    def member(rank):
        return work(rank, inbox[(rank + 1) % size].put, lambda: inbox[rank].get(timeout=patience))

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(member, range(size)))


# %% [markdown]
# Here the members are threads, parts of one program that run at the same time, and a `queue.Queue` is the wire
# between two neighbours. They see nothing of each other but what arrives in the queue. With processes on different
# machines only `send` and `receive` would be different.
#
# To watch it, let four members each begin with four ones. A number then counts how many contributions a chunk has:

# %%
size = 4


def watched(rank, send, receive):
    history = [np.ones(size)]
    x = history[0].copy()
    ring_all_reduce(x, rank, size, send, receive, after_step=lambda x: history.append(x.copy()))
    return history


history = np.array(in_ring(size, watched))  # (member, step, chunk)
figure, axes = picture(12, 2.3, columns=7, sharey=True)
for step, ax in enumerate(axes):
    ax.imshow(history[:, step], vmin=0, vmax=5)
    for place in np.ndindex(size, size):
        count = history[:, step][place]
        color = "white" if count > 2 else "black"
        ax.text(place[1], place[0], f"{count:.0f}", ha="center", va="center", color=color)
    phase = "start" if step == 0 else f"reduce-scatter {step}" if step < size else f"all-gather {step - size + 1}"
    ax.set_title(phase, fontsize=9)
    ax.set(xlabel="chunk", xticks=range(size), yticks=range(size))
    ax.grid(False)
axes[0].set_ylabel("process")

# %% [markdown]
# In the first phase, each process receives in every step a chunk with one contribution more: the numbers become 2,
# then 3, then 4. After three steps each process has a 4, in a different chunk. In the second phase the 4s go round.
# Now we take random numbers, and check the sum and how much was sent.

# %%
size, n = 4, 1000
arrays = rng.normal(size=(size, n))
sent = [0] * size


def summed(rank, send, receive):
    def counted(chunk):
        sent[rank] += chunk.size
        send(chunk)

    x = arrays[rank].copy()
    ring_all_reduce(x, rank, size, counted, receive)
    return x


results = in_ring(size, summed)
same(results[0], arrays.sum(axis=0), "the ring's sum, and NumPy's")
same(sent, [2 * n * (1 - 1 / size)] * size, "the numbers that each one sent, and the formula")
print("every process has the same bits:", all((result == results[0]).all() for result in results))
print(f"in the obvious way, the one in the middle would send {(size - 1) * n:,} numbers; in the ring, {sent[0]:,}")

# %% [markdown]
# "The same bits" matters more than it seems. Sums of floating-point numbers depend on their order: $(a + b) + c$ and
# $a + (b + c)$ may differ in the last digit. In the ring each chunk is added up once, in one order, and then
# *copied*. If every process added for itself, in its own order, the weights of the replicas would differ more and
# more.

# %%
order = [[0, 1, 2, 3], [1, 2, 3, 0]]
first, second = (arrays[o[0]] + arrays[o[1]] + arrays[o[2]] + arrays[o[3]] for o in order)
unequal = np.mean(first != second)
print(f"two orders of adding: {unequal:.0%} of the sums differ, by up to {abs(first - second).max():.0e}")

# %% [markdown]
# ## Two replicas, one training
#
# With the all-reduce, training in parallel is the ordinary loop with two lines more. Each member takes its share of
# the same 32 rows, weights its gradient by the size of its share, and all-reduces it. For comparison, we also train
# two members that do not communicate:

# %%
n_steps, rate = 60, 0.3
batches = np.random.default_rng(1).permutation(4096)[: n_steps * N].reshape(n_steps, N)


def train_alone():
    w, losses = np.zeros(n_in), []
    for rows in batches:
        losses.append(loss_of(w, np.arange(4096)))
        w = w - rate * gradient(w, rows)
    return w, losses


def train_together(size, communicate=True):
    def replica(rank, send, receive):
        w, losses = np.zeros(n_in), []
        for rows in batches:
            losses.append(loss_of(w, np.arange(4096)))
            own = np.array_split(rows, size)[rank]
            g = gradient(w, own)
            if communicate:
                g *= len(own) / N  # the term of the weighted mean
                ring_all_reduce(g, rank, size, send, receive)
            w = w - rate * g
        return w, losses

    return in_ring(size, replica)


alone, losses_alone = train_alone()
(one, losses_two), (two, _) = train_together(2)
same(one, alone, "the weights after 60 steps: two replicas, and one process")
print("the two replicas have the same bits:", bool((one == two).all()))
same(train_together(3)[2][0], alone, "three replicas with 11, 11 and 10 rows, and one process")

silent = train_together(2, communicate=False)
figure, (left, right) = picture(11, 3.2, columns=2)
left.plot(losses_alone, label="one process", linewidth=5, alpha=0.3)
left.plot(losses_two, label="two replicas")
left.plot(silent[0][1], "--", label="one of two that do not communicate")
left.set(xlabel="step", ylabel="loss over all rows", yscale="log")
left.legend()
right.plot(one - alone, ".", label="two replicas minus one process")
print(f"weights of the two that do not communicate differ by up to {abs(silent[0][0] - silent[1][0]).max():.2f}")
right.set(xlabel="weight", ylabel="difference", title="only rounding")
right.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
right.legend()

# %% [markdown]
# Two replicas have the curve of one process. A member that does not communicate sees only its own 16 rows in each
# step: its loss is a little larger, and the two end with different weights.
#
# ### What it costs
#
# Let one process need the time $c$ for the gradient of the batch, and let a number take the time $b$ on the wire.
# Then a step with $p$ processes takes about
#
# $$T(p) = \frac{c}{p} + 2 \left( 1 - \frac1p \right) n \, b$$
#
# The first part shrinks with $p$, the second does not. The step is faster than with one process, $T(p) < c$, only if
# $2 n b < c$ (subtract $c / p$, and divide by $1 - 1/p$). It is nearly $p$ times as fast only while the computation of
# a share takes much longer than the sending: with large batches and a fast wire. Two tricks help. Accumulate first,
# and send only after the last micro-batch. And send while computing: the backward pass finishes the gradients of the
# last layers first, so they can travel while it works on the others. That is called *overlap*.

# %%
n_weights = 124e6  # GPT-2
for gigabytes, wire in [(0.125, "1 Gbit Ethernet"), (12.5, "100 Gbit network")]:
    b = 4 / (gigabytes * 1e9)  # seconds for a number of 4 bytes
    row = [f"{10 / (10 / p + 2 * (1 - 1 / p) * n_weights * b):.1f}x with {p}" for p in (2, 8, 64)]
    print(f"GPT-2, a batch of 10 seconds, {wire}: {', '.join(row)}")

# %% [markdown]
# ## The library's code
#
# Accumulation is a loop like ours. With a `reducer` (below), each process takes its share of the windows. `scaler` is
# for 16-bit numbers; here it does nothing.

# %%
show(accumulate_gradients)

# %% [markdown]
# What the library needs of a group of processes is a `Communicator`: its `rank`, its `size`, and a few operations.
# The base class is a group of one. `all_reduce` *starts* the exchange, and the `Exchange` that it returns can be
# waited for, so that something else can be done meanwhile. `MPICommunicator` is the one for real processes: it hands
# the work to MPI, the standard interface for programs that run on many machines, whose implementations have the ring
# (and other ways) built in.

# %%
show(tg.distributed.Communicator, tg.distributed.MPICommunicator.all_reduce)

# %% [markdown]
# And the overlap: `GradientReducer` puts the parameters into buckets of some megabytes, because every message takes
# some time of its own, however short it is. `GradientReady` is an observer of the tape (chapter 00b) which reports
# when the gradient of a *leaf* of the tape, here a parameter, is complete. When a whole bucket is complete, its
# all-reduce starts while backward goes on:

# %%
show(tg.distributed.GradientReady.added, tg.distributed.GradientReducer._ready, tg.distributed.GradientReducer.wait)

# %% [markdown]
# ## The same numbers
#
# We can give the library *our* ring: a `Communicator` whose members are threads.

# %%
class Ring(tg.distributed.Communicator):
    """A group of threads in a ring."""

    def __init__(self, rank, size, send, receive):
        self.rank, self.size, self.wires = rank, size, (send, receive)

    def all_reduce(self, array):
        ring_all_reduce(array, self.rank, self.size, *self.wires)
        return tg.distributed.Exchange()  # one that is over

    def gather(self, values):
        rows = np.zeros((self.size, len(values)))
        rows[self.rank] = values
        ring_all_reduce(rows.reshape(-1), self.rank, self.size, *self.wires)  # the other rows are zero: a sum is enough
        return rows


# %% [markdown]
# A small GPT takes five steps on 8 windows of random tokens: at once; accumulated in four micro-batches; and by two
# replicas with 4 windows each, in two micro-batches.

# %%
shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 20, "bias": True}
tokens = rng.integers(0, 20, (5, 8, 9))


def new_model():
    tg.manual_seed(3)
    return GPT(shape).astype("float64")


def five_steps(model, batch_size, group=None):
    """The losses, and the weights afterwards as one array."""
    reducer = None if group is None else tg.distributed.GradientReducer(model.parameters(), group, bucket_bytes=2**14)
    optimizer = tg.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for windows in tokens:
        batch = windows[:, :-1], windows[:, 1:]
        losses.append(accumulate_gradients(model, batch, batch_size, reducer=reducer))
        optimizer.step()
        optimizer.zero_grad()
    return np.array(losses), np.concatenate([p.data.reshape(-1) for p in model.parameters()])


models = [new_model() for _ in range(2)]
at_once = five_steps(new_model(), 8)
in_parts = five_steps(new_model(), 2)
replicas = in_ring(2, lambda rank, send, receive: five_steps(models[rank], 2, Ring(rank, 2, send, receive)))

print("losses:", at_once[0].round(4))
same(in_parts[0], at_once[0], "losses: four micro-batches, and one batch")
same(replicas[0][0], at_once[0], "losses: two replicas, and one process")
same(in_parts[1], at_once[1], "weights after five steps: four micro-batches, and one batch", tolerance=1e-9)
same(replicas[0][1], at_once[1], "weights after five steps: two replicas, and one process", tolerance=1e-9)
print("the replicas have the same bits:", bool((replicas[0][1] == replicas[1][1]).all()))

# %% [markdown]
# The differences are rounding: the sums were added up in another order. (The tolerance of the weights is larger
# because AdamW divides by the size of the gradient, which enlarges the rounding where the gradient is nearly zero.)
#
# With real processes, the library's training program needs only to be started by MPI. Each process works on its share
# of every batch, and the loss curve is that of one process:
#
# ```bash
# pip install -e ".[fast,data,mpi]"
# python train.py --max-iters 200 --batch-size 12              # one process
# mpirun -n 2 python train.py --max-iters 200 --batch-size 12  # two processes: equal losses, up to rounding
# ```
#
# ## Mistakes that people make
#
# **Forgetting to divide.** If each micro-batch's loss is a mean and nobody divides by the number of micro-batches,
# the gradient is as many times too large. With AdamW this may go unnoticed for a while, because AdamW divides by the
# gradient's size (chapter 05):

# %%
w_t.grad = None
for part in np.split(rows, 4):
    error = tg.tanh(tg.matmul(tg.Tensor(X[part]), w_t)) - tg.Tensor(target[part])
    (error**2).mean().backward()
ratio = np.linalg.norm(w_t.grad) / np.linalg.norm(gradient(w, rows))
print(f"without dividing, the gradient is {ratio:.1f} times as large")

# %% [markdown]
# **Giving every process the same data.** If each draws its batch from the same seed, all draw the same rows. No error
# is raised, but two processes compute the gradient of *half* the rows twice. It is noisier: the error of a mean over
# random rows shrinks with the square root of their number.

# %%
all_rows = gradient(w, np.arange(4096))


def mean_error(draw):
    """How far the gradient of the drawn rows is from that of all 4096: the root of the mean square, over 60 steps."""
    return np.sqrt(np.mean([((gradient(w, draw(rows)) - all_rows) ** 2).sum() for rows in batches]))


different, twice = mean_error(lambda rows: rows), mean_error(lambda rows: np.tile(rows[:16], 2))
print(f"error of the gradient: 32 different rows {different:.2f}, 16 rows twice {twice:.2f}")

# %% [markdown]
# **Starting from different weights.** All-reduce makes the *updates* equal, not the weights. Replicas that begin at
# different random weights keep their difference forever, and each gets gradients that were computed at other weights.
# So the first process has to send its weights to all others before the first step. Without this:

# %%
def from_different_starts(rank, send, receive):
    w = np.random.default_rng(rank).normal(size=n_in) * 0.5
    before = w
    for batch in batches:
        g = gradient(w, np.array_split(batch, 2)[rank]) / 2
        ring_all_reduce(g, rank, 2, send, receive)
        w = w - rate * g
    return before, w


(start_a, end_a), (start_b, end_b) = in_ring(2, from_different_starts)
same(end_a - end_b, start_a - start_b, "the difference of the replicas' weights at the end, and at the beginning")
mean_loss = (loss_of(end_a, np.arange(4096)) + loss_of(end_b, np.arange(4096))) / 2
print(f"their loss {mean_loss:.3f}; with equal starts {losses_two[-1]:.3f}")

# %% [markdown]
# **Waiting for something that never comes.** An all-reduce ends when *all* have called it. If one process skips a
# step (its data ran out, its loss was not a number), the others wait forever, without any error. Our queue gives up
# after a while, which makes the mistake visible:

# %%
def one_skips(rank, send, receive):
    if rank == 1:
        return "skipped the step"
    try:
        ring_all_reduce(np.ones(4), rank, 2, send, receive)
    except queue.Empty:
        return "waited in vain"
    return "done"


print(in_ring(2, one_skips, patience=0.5))

# %% [markdown]
# ## Exercises
#
# Replace the three dots, and run the cell. The tests are in [`exercises/parallel.py`](exercises/parallel.py), one
# possible answer in [`solutions/parallel.py`](solutions/parallel.py).
#
# **1.** Every process reports the mean gradient of its rows, and how many rows it had; some may have had none. Return
# the gradient of all rows.

# %%
def combine(means, counts):
    """The mean gradient over all rows from the means (p, n) of p parts with these numbers of rows (p,)."""
    ...


exercise(combine, tests.combine)

# %% [markdown]
# **2.** Divide the rows $0$ to `n_rows - 1` among the processes, so that each can compute its own share: every row
# belongs to exactly one process, and the shares differ by at most one row.

# %%
def own_rows(n_rows, rank, size):
    """The first row of this process, and the row after its last."""
    ...


exercise(own_rows, tests.own_rows)

# %% [markdown]
# **3.** For small arrays the ring's $2 (p - 1)$ steps are slow, since each step has to wait for a message. *Recursive
# doubling* needs only $\log_2 p$: in every round each process exchanges its whole sum with one partner, and both add.
# The partners must be chosen so that after the last round everyone has everything, each contribution once. Return the
# partners of a process, round by round; $p$ is a power of 2. (Hint: write the ranks in binary.)

# %%
def partners(rank, size):
    """The list of this process's partners, one for each round."""
    ...


exercise(partners, tests.partners)

# %% [markdown]
# ## What you can use now
#
# `tg.distributed` with `tg.distributed.Communicator` (a group), `tg.distributed.Exchange` (something under way) and
# `tg.distributed.GradientReducer` (gradients summed while backward goes on), and
# `gpt.train.step.accumulate_gradients`. From earlier chapters this one used `tg.matmul`, `tg.optim`, `tg.manual_seed`
# and `gpt.model.GPT`.
#
# ## Sources
#
# - Pitch Patarasuk and Xin Yuan, [Bandwidth optimal all-reduce algorithms for clusters of
#   workstations](https://doi.org/10.1016/j.jpdc.2008.09.002), 2009: the ring, and the proof that nothing can send
#   less.
# - Shen Li and others, [PyTorch Distributed: Experiences on Accelerating Data Parallel
#   Training](https://arxiv.org/abs/2006.15704), 2020: buckets, and overlap with backward.
# - Rajeev Thakur, Rolf Rabenseifner and William Gropp, [Optimization of Collective Communication Operations in
#   MPICH](https://doi.org/10.1177/1094342005051521), 2005: recursive doubling, and which way is best for which size.
#
# You have now seen every part of a GPT, from one derivative to training in parallel. The [map of the
# code](../docs/map.md) shows where each is.
#
# Next: [13 Curvature](13_curvature.ipynb), where gradients are differentiated once more.
