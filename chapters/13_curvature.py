# %% [markdown]
# # 13 Curvature
#
# A gradient says in which direction the loss falls. It does not say for how long: after a small step the slope is
# another one. How fast the slope changes is a second derivative, the *curvature* of the loss. It decides how large a
# learning rate may be, and it explains a part of what chapter 05 showed: why the learning rate has to rise slowly at
# the start. In this chapter you compute the largest curvature of a GPT while it trains. For that, the tape has to
# differentiate a gradient.
#
# ## What you will be able to do
#
# - compute second derivatives by differences, and say why they need a larger step,
# - read the eigenvalues of a Hessian as curvatures,
# - multiply a vector by the Hessian of a model without ever computing the Hessian,
# - write a tape whose gradients have gradients, to any order,
# - find the largest eigenvalue with a dozen such products,
# - derive the limit of the learning rate, for gradient descent and for Adam, and see a model train at it.
#
# You need the tape of [00 Gradients](00_gradients.ipynb) and the training of [05 Pretraining](05_pretraining.ipynb).

# %%
import math

import numpy as np
from course import exercise, picture, same, show
from exercises import curvature as tests

import tensorgrad as tg
from gpt.config import GPTConfig
from gpt.data import load_text, make_loaders
from gpt.model import GPT
from gpt.tokenizer import CharTokenizer
from tensorgrad.backend import load
from tensorgrad.second_order import RepeatableNode
from tensorgrad.tracing import TracedArray, Tracing

tg.use_backend("auto")  # the fastest that runs here
rng = np.random.default_rng(0)

# %% [markdown]
# ## The idea
#
# The second derivative is the derivative of the derivative. Take the slope half a step to the right of $x$ and half a
# step to the left, both by central differences, and see how much the slope has changed on the way:
#
# $$f''(x) \approx \frac{f'(x + \tfrac h 2) - f'(x - \tfrac h 2)}{h}
#   \approx \frac{1}{h} \left( \frac{f(x + h) - f(x)}{h} - \frac{f(x) - f(x - h)}{h} \right)
#   = \frac{f(x + h) - 2 f(x) + f(x - h)}{h^2}$$

# %%
def second_difference(f, x, h=1e-4):
    """The second derivative of f at x."""
    return (f(x + h) - 2 * f(x) + f(x - h)) / h**2


x, h = 1.0, 1e-4
right, left = (np.sin(x + h) - np.sin(x)) / h, (np.sin(x) - np.sin(x - h)) / h  # slopes, half a step from x
same(right, np.cos(x + h / 2), "the slope half a step to the right", tolerance=1e-8)
same((right - left) / h, second_difference(np.sin, x), "the difference of slopes, and the last formula", tolerance=1e-6)
same(second_difference(np.sin, x), -np.sin(x), "the second derivative of sin, and -sin", tolerance=1e-6)

# %% [markdown]
# Differences are a good check, but a poor method. Here the rounding errors of $f$, about $10^{-16}$, are divided by
# $h^2$. With $h = 10^{-4}$ that leaves 8 digits. A model computes with 7 digits to begin with, so nothing would be
# left. And a model has not one second derivative, but one for every *pair* of its weights.
#
# ## The Hessian
#
# Two weights $a$ and $b$ have four second derivatives: first with respect to $a$ or $b$, then again with respect to
# $a$ or $b$. The table of them is the **Hessian** $H$, with $H_{ij} = \partial_i \partial_j f$, where $\partial_i f$
# is the derivative with respect to weight number $i$. The order does not matter, $H_{ij} = H_{ji}$: the table is
# *symmetric*. As an example, take a neuron with one weight before its tanh and one after it, and a little weight
# decay:
#
# $$f(a, b) = (b \tanh a - 1)^2 + 0.05 \, (a^2 + b^2)$$

# %%
def neuron(a, b, tanh=np.tanh):
    error = b * tanh(a) - 1
    return error * error + 0.05 * (a * a + b * b)


def gradient_by_differences(f, p, h=1e-5):
    return np.array([(f(*(p + step)) - f(*(p - step))) / (2 * h) for step in np.eye(len(p)) * h])


def hessian_by_differences(f, p, h=1e-4):
    rows = [gradient_by_differences(f, p + step, h) - gradient_by_differences(f, p - step, h) for step in np.eye(2) * h]
    return np.array(rows) / (2 * h)


point = np.array([0.4, 0.5])
H = hessian_by_differences(neuron, point)
print(H.round(4))
same(H, H.T, "the Hessian, and itself with rows and columns exchanged", tolerance=1e-6)

# %% [markdown]
# ### Curvature in one direction
#
# Walk from $p$ in a direction $v$ of length 1. The loss on this line is a function of one number,
# $g(t) = f(p + t v)$. By the chain rule, each weight contributes to its slope, and each pair of weights to the change
# of the slope:
#
# $$g'(t) = \sum_i v_i \, \partial_i f, \qquad g''(t) = \sum_i \sum_j v_i v_j \, \partial_j \partial_i f = v^T H v$$
#
# A symmetric matrix has *eigenvectors*: directions $q_k$ at right angles to each other, of length 1, which $H$ only
# stretches, $H q_k = \lambda_k q_k$. The factors $\lambda_k$ are the *eigenvalues*. Write $v$ with the eigenvectors
# as its axes, $v = \sum_k c_k q_k$. Then $H v = \sum_k c_k \lambda_k q_k$, and since $q_j \cdot q_k$ is 1 for
# $j = k$ and 0 otherwise,
#
# $$v^T H v = \sum_j \sum_k c_j \, c_k \lambda_k \, (q_j \cdot q_k) = \sum_k \lambda_k c_k^2,
#   \qquad \sum_k c_k^2 = 1$$
#
# So the curvature in any direction is an *average of the eigenvalues*. It is largest in the direction of the
# eigenvector with the largest eigenvalue, $\lambda_{max}$, and nowhere larger than that.

# %%
eigenvalues, Q = np.linalg.eigh(H)  # the eigenvectors are the columns of Q
v = np.array([math.cos(1.0), math.sin(1.0)])
along = second_difference(lambda t: neuron(*(point + t * v)), 0.0)
same(along, v @ H @ v, "curvature along v by differences, and v·Hv", tolerance=1e-5)
c = Q.T @ v
same((eigenvalues * c**2).sum(), v @ H @ v, "the average of the eigenvalues, and v·Hv")
print("eigenvalues:", eigenvalues.round(3))

angles = np.linspace(0, np.pi, 200)
directions = np.array([np.cos(angles), np.sin(angles)])
figure, (left, right) = picture(9, 3.6, columns=2)
xs, ys = np.meshgrid(np.linspace(-0.6, 2.4, 120), np.linspace(-0.6, 2.4, 120))
left.contour(xs, ys, neuron(xs, ys), levels=np.geomspace(0.18, 8, 14), colors="#b0b0b0", linewidths=0.8)
for k, color in [(1, "#d55e00"), (0, "#0072b2")]:
    ends = point[:, None] + Q[:, k, None] * np.array([-0.6, 0.6])
    left.plot(*ends, color=color, linewidth=2, label=f"curvature {eigenvalues[k]:.2f}")
left.plot(*point, "o", color="black", markersize=5)
left.set(xlabel="a", ylabel="b", title="the loss of one neuron", aspect="equal")
left.legend(loc="upper right", fontsize=8)
right.plot(np.degrees(angles), (directions * (H @ directions)).sum(axis=0))
right.axhline(eigenvalues[1], color="#d55e00", linestyle=":")
right.axhline(eigenvalues[0], color="#0072b2", linestyle=":")
right.set(xlabel="direction of v in degrees", ylabel="v · H v", title="between the two eigenvalues")

# %% [markdown]
# In the direction of the orange line the loss curves upwards: a valley's wall. Along the blue line the curvature is
# negative: the loss bends downwards. With both kinds, the loss has the shape of a *saddle* (a tilted one, as the
# gradient is not zero), and models spend most of their training in such places.
#
# ## A Hessian times a vector
#
# A small GPT has 100,000 weights. Its Hessian has $10^{10}$ entries, 40 gigabytes, and each column would cost a
# gradient or more. But we do not need $H$. To find its largest eigenvalue, products $H v$ are enough, and they are
# cheap. Write one entry of the product, and move the derivative $\partial_i$ out of the sum; $v_j$ is a constant:
#
# $$(H v)_i = \sum_j \partial_i \partial_j f \; v_j = \partial_i \sum_j (\partial_j f) \, v_j
#   = \partial_i \, \langle \nabla f, v \rangle$$
#
# $\nabla f$ is the gradient, all $\partial_j f$ together, and $\langle \cdot, \cdot \rangle$ is the sum of the
# products of the entries. In words: compute the gradient, multiply it by $v$, add up, which gives **one number**. The
# gradient of this number is $H v$. One number has a gradient for the price of a backward pass. This is Pearlmutter's
# trick of 1994. It costs a few times as much as a gradient, whatever the number of weights.

# %%
products = [gradient_by_differences(neuron, point + step) @ v for step in np.eye(2) * 1e-4]  # <gradient, v> nearby
products_left = [gradient_by_differences(neuron, point - step) @ v for step in np.eye(2) * 1e-4]
Hv = (np.array(products) - np.array(products_left)) / 2e-4
same(Hv, H @ v, "the gradient of <gradient, v>, and H times v", tolerance=1e-5)

# %% [markdown]
# ## A tape whose gradients have gradients
#
# To do this exactly, we need the gradient of something that was computed from a gradient. The tape of chapter 00
# cannot do it: its backward functions multiply plain numbers (`dy * other.data`), and no tape records what happens to
# plain numbers.
#
# There is an elegant way out. Look at an operation such as tanh, written as a function that returns its result and
# its backward:
#
# $$y = \tanh x, \qquad dx = dy \cdot (1 - y \cdot y)$$
#
# Nothing in it says that $x$ has to be a number. Called with a number, it computes a number. Called with a `Value`,
# it computes a `Value`, and so does its backward: every product in it is recorded. So each value remembers which
# operation made it, and from what. When a recorded gradient is wanted, **the operation runs a second time, on
# Values**, only to get a backward that works with Values:

# %%
def add(a, b):
    return a + b, lambda dy: (dy, dy)


def multiply(a, b):
    return a * b, lambda dy: (dy * b, dy * a)


def tanh_and_backward(x):
    y = tanh(x)
    return y, lambda dy: (dy * (1 + -1 * (y * y)),)


class Value:
    """A number that remembers which operation made it, and from which values."""

    count = 0

    def __init__(self, data, operation=None, operands=()):
        Value.count += 1
        self.data, self.operation, self.operands, self.sequence = data, operation, operands, Value.count

    def __add__(self, other):
        return run(add, self, other)

    def __mul__(self, other):
        return run(multiply, self, other)

    def __sub__(self, other):
        return self + -1 * other

    __radd__, __rmul__ = __add__, __mul__


def run(operation, *operands):
    operands = [x if isinstance(x, Value) else Value(x) for x in operands]
    result, _ = operation(*(x.data for x in operands))  # on numbers
    return Value(result, operation, operands)


def tanh(x):
    return run(tanh_and_backward, x) if isinstance(x, Value) else math.tanh(x)


def gradients(output, inputs, record):
    """The gradients of a value: numbers, or with `record` Values, which have gradients themselves."""
    found, waiting = {output}, [output]
    while waiting:
        new = set(waiting.pop().operands) - found
        found |= new
        waiting.extend(new)
    arrived = {output: Value(1.0) if record else 1.0}
    for value in sorted(found, key=lambda value: value.sequence, reverse=True):
        if value.operation:
            operands = value.operands if record else [x.data for x in value.operands]
            _, backward = value.operation(*operands)  # the operation once more: on Values, or on numbers
            for x, dx in zip(value.operands, backward(arrived[value]), strict=True):
                arrived[x] = arrived[x] + dx if x in arrived else dx
    return [arrived[x] for x in inputs]


# %% [markdown]
# The derivative of tanh is $1 - \tanh^2$. Differentiate that again, by the chain rule, and again by the product rule.
# With $t = \tanh x$ and $t' = 1 - t^2$:
#
# $$\tanh'' x = -2 t \, t' = -2 t (1 - t^2)$$
#
# $$\tanh''' x = -2 t' \, (1 - t^2) - 2 t \, (-2 t \, t') = (1 - t^2)(-2 (1 - t^2) + 4 t^2) = (1 - t^2)(6 t^2 - 2)$$

# %%
x = Value(0.4)
first, = gradients(tanh(x), [x], record=True)
second, = gradients(first, [x], record=True)
third, = gradients(second, [x], record=False)
t = math.tanh(0.4)
same(first.data, 1 - t**2, "the first derivative of tanh")
same(second.data, -2 * t * (1 - t**2), "the second")
same(third, (1 - t**2) * (6 * t**2 - 2), "the third")
same(second_difference(np.tanh, 0.4), second.data, "the second, by differences", tolerance=1e-6)

a, b = (Value(float(x)) for x in point)
da, db = gradients(neuron(a, b, tanh), [a, b], record=True)
Hv = gradients(da * v[0] + db * v[1], [a, b], record=False)
same(H @ v, Hv, "H v of the neuron: by differences, and by the gradient of <gradient, v>", tolerance=1e-6)

# %% [markdown]
# ## The largest eigenvalue
#
# We can multiply by $H$. How do we get from there to $\lambda_{max}$?
#
# **Power iteration.** Begin with a random vector $v = \sum_k c_k q_k$ and multiply by $H$ again and again. Each product
# stretches every component by its eigenvalue, so after $n$ of them
#
# $$H^n v = \sum_k c_k \lambda_k^n \, q_k
#   = \lambda_1^n \left( c_1 q_1 + \sum_{k > 1} c_k \left(\frac{\lambda_k}{\lambda_1}\right)^{n} q_k \right)$$
#
# If $\lambda_1$ is the largest in size, all other components die out, and what remains points along $q_1$. If
# $\lambda_2$ is close to $\lambda_1$ that takes many products. Each costs a pass through the model.
#
# **Lanczos.** Power iteration uses the last vector only, and forgets the others. Keep them all: make $v, Hv, H^2 v,
# \dots$ into axes $q_1, q_2, \dots$ at right angles (subtract from each new vector its components along the earlier
# ones). Seen in these axes, $H$ becomes a small matrix with the entries $T_{jk} = q_j \cdot H q_k$, and the largest
# eigenvalue of $T$ is the largest curvature of any direction that can be made from all these vectors. Most of $T$ is
# zero. $H q_k$ can be written with $q_1, \dots, q_{k+1}$, because that is how $q_{k+1}$ was made. So
# $T_{jk} = 0$ for $j > k + 1$; and as $H$ is symmetric, $T_{jk} = (H q_j) \cdot q_k = T_{kj}$ is zero for
# $k > j + 1$, too. What remains is the diagonal and its two neighbours.

# %%
def lanczos(product, start, n):
    """Approximate eigenvalues, the smallest first, and eigenvectors (columns) after n products."""
    axes, diagonal, beside = [start / np.linalg.norm(start)], [], []
    for _ in range(n):
        w = product(axes[-1])
        diagonal.append(w @ axes[-1])
        for _ in range(2):  # a second time, because of rounding
            for q in axes:
                w = w - (w @ q) * q
        beside.append(np.linalg.norm(w))
        axes.append(w / beside[-1])
    T = np.diag(diagonal) + np.diag(beside[:-1], 1) + np.diag(beside[:-1], -1)
    values, vectors = np.linalg.eigh(T)
    return values, np.array(axes[:-1]).T @ vectors


spectrum = np.concatenate([rng.normal(size=292), [4.0, 4.5, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]])  # most near 0, a few large
Q, _ = np.linalg.qr(rng.normal(size=(300, 300)))
A = Q * spectrum @ Q.T  # a symmetric matrix with these eigenvalues
start = rng.normal(size=300)

values, vectors = lanczos(lambda v: A @ v, start, 6)
axes = np.linalg.qr(np.array([np.linalg.matrix_power(A, k) @ start for k in range(6)]).T)[0]
T = axes.T @ A @ axes
same(np.triu(np.tril(T, 1), -1), T, "T, and T without what is far from its diagonal", tolerance=1e-8)
same(np.linalg.eigvalsh(T), values, "eigenvalues of T by its definition, and by lanczos", tolerance=1e-8)

errors = {"power iteration": [], "Lanczos": []}
v = start
for n in range(1, 31):
    v = A @ v / np.linalg.norm(A @ v)
    errors["power iteration"].append(10 - v @ A @ v)
    errors["Lanczos"].append(abs(10 - lanczos(lambda v: A @ v, start, n)[0][-1]))
figure, ax = picture(7, 3)
for name, values in errors.items():
    ax.semilogy(range(1, 31), values, label=name)
    print(f"{name:<16} error after 10 products {values[9]:.4f}, after 20 {values[19]:.6f}, after 30 {values[29]:.0e}")
ax.set(xlabel="products with the matrix", ylabel="error of the largest eigenvalue", ylim=(1e-13, 20))
ax.legend()

# %% [markdown]
# ## Why a learning rate has a limit
#
# Near a point, every smooth loss looks like a parabola in each direction of an eigenvector. In such a direction, let
# $p$ be the distance from the bottom: the loss is $\frac 1 2 \lambda p^2$, its slope $\lambda p$. Gradient descent
# with learning rate $\eta$ takes the step
#
# $$p_{t+1} = p_t - \eta \lambda p_t = (1 - \eta\lambda) \, p_t, \qquad p_t = (1 - \eta\lambda)^t \, p_0$$
#
# It comes down if $|1 - \eta\lambda| < 1$, that is if $-1 < 1 - \eta\lambda$, or
#
# $$\eta < \frac{2}{\lambda} \qquad \text{or, seen from the other side,} \qquad \lambda < \frac{2}{\eta}$$
#
# At $\eta = 1/\lambda$ a single step reaches the bottom. Beyond it every step jumps across to the other wall. Beyond
# $2/\lambda$ it lands higher than it was before, and grows without end. One learning rate must serve all directions,
# so the one with the largest curvature (the *steepest*) decides: $\eta < 2 / \lambda_{max}$.

# %%
curvatures, n_steps = np.array([0.5, 3.0, 10.0]), 60
for factor in [1.9, 2.0, 2.1]:
    p = np.ones(3)
    for _ in range(n_steps):
        p = p - factor / curvatures.max() * curvatures * p
    same(p, (1 - factor / 10 * curvatures) ** n_steps, f"{n_steps} steps, and the power", tolerance=1e-9)
    print(f"learning rate {factor} / λ_max: from 1 to {np.abs(p).max():.3g}")

# %% [markdown]
# ## The curvature of a GPT
#
# The model and the text are those of chapter 05. `hessian_of` computes the gradient once, recorded; each product is
# then one more backward pass. (The eigenvectors are long vectors of all weights, and `parts` cuts them into the
# shapes of the parameters.)

# %%
text = load_text("shakespeare")[:400_000]
train_data, _ = make_loaders(text, CharTokenizer.train(text), batch_size=8, block_size=32)
CONFIG = GPTConfig(
    vocab_size=train_data.tokenizer.vocab_size, block_size=32, n_layer=2, n_head=4, n_embd=64, bias=False
)
probe = train_data.batch(1000)  # the batch on which we measure


def new_model(config=CONFIG):
    tg.manual_seed(1)
    return GPT(config)


def flat(arrays):
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in arrays])


def parts(vector, parameters):
    pieces = np.split(vector, np.cumsum([p.size for p in parameters])[:-1])
    return [piece.reshape(p.shape).astype(p.dtype) for piece, p in zip(pieces, parameters, strict=True)]


def hessian_of(model, batch):
    """Return the function v -> H v for the loss of a model on this batch."""
    parameters = list(model.parameters())
    with tg.higher_order():
        gradient = tg.gradients(model.loss(*batch), parameters, create_graph=True)

    def product(v):
        dot = sum(tg.sum(g * piece) for g, piece in zip(gradient, parts(v, parameters), strict=True))
        return flat(x.data for x in tg.gradients(dot, parameters, retain_graph=True))

    return product


model = new_model()
n_weights = model.num_params()
start = np.random.default_rng(1).normal(size=n_weights)
at_start, _ = lanczos(hessian_of(model, probe), start, 16)
print(f"{n_weights:,} weights; curvatures at the start between {at_start[0]:.1f} and {at_start[-1]:.1f}")

# %% [markdown]
# Before the first step the loss is a saddle. Now we train with plain gradient descent, always on the same batch, so
# that there is one loss and one Hessian, and measure $\lambda_{max}$ every sixth step. We do it with two learning
# rates:

# %%
def largest(product, guess, n):
    """The largest eigenvalue and its vector; the search begins near a guess."""
    noise = np.random.default_rng(1).normal(size=n_weights)
    values, vectors = lanczos(product, guess + 0.3 * noise / np.linalg.norm(noise), n)
    return values[-1], vectors[:, -1]


def descend(lr, warmup=0, n_steps=61):
    """Plain gradient descent on the probe batch: losses and learning rates, and the curvature of every 6th step."""
    model, top = new_model(), np.zeros(n_weights)
    losses, rates, curvature = [], [], []
    for step in range(n_steps):
        if step % 6 == 0:
            value, top = largest(hessian_of(model, probe), top, 7)
            curvature.append(value)
        loss = model.loss(*probe)
        loss.backward()
        losses.append(loss.item())
        rates.append(lr * min(1.0, (step + 1) / (warmup + 1)))
        for p in model.parameters():
            p.data -= rates[-1] * p.grad
            p.grad = None
    return np.array(losses), np.array(rates), np.array(curvature)


runs = {lr: descend(lr) for lr in [0.1, 0.05]}

# %% tags=["sampled"]
figure, (left, right) = picture(9, 3.4, columns=2)
for (lr, (losses, _, curvature)), color in zip(runs.items(), ["#d55e00", "#0072b2"], strict=True):
    left.plot(6 * np.arange(len(curvature)), curvature, "o-", markersize=3, color=color, label=f"learning rate {lr:g}")
    left.axhline(2 / lr, color=color, linestyle=":")
    right.plot(losses, color=color)
    mean = curvature[4:].mean()
    print(f"learning rate {lr:g}: 2/lr = {2 / lr:.0f}; λ_max at the start {curvature[0]:.0f}, ", end="")
    print(f"mean from step 24 on {mean:.0f}; loss at the end {losses[-1]:.2f}")
left.set(xlabel="step", ylabel="λ_max", title="curvature, and 2/lr (dotted)", ylim=(0, None))
left.legend(fontsize=8)
right.set(xlabel="step", ylabel="loss", title="the loss on this batch")

# %% [markdown]
# The curvature starts low. As the model learns, it *rises*, until it has passed the dotted line, $2/\eta$. From there
# on the limit of the parabola is broken, and the loss jumps up now and then. But a real loss is not a parabola: the
# jump carries the model to a place that is less steep, and the curvature falls again. So it goes up and down around
# the limit, here mostly above it. **Half the learning rate gives nearly twice the curvature.** This is called the
# *edge of stability*: the loss decides how large a step may be, and the step decides in which places of the loss the
# model can stay.
#
# ## What warm-up is for
#
# What if the curvature of the new model is above the limit, from the first steps on? With a learning rate of 0.2 it
# is $2 / 0.2 = 10$, and the model starts there. We take this rate once from the first step, and once with a warm-up
# of 40 steps, in which the learning rate rises in a straight line.

# %%
warm = {warmup: descend(0.2, warmup, 85) for warmup in [0, 40]}

# %% tags=["sampled"]
figure, axes = picture(10, 3.4, columns=3)
for ax, (warmup, (losses, rates, curvature)) in zip(axes, warm.items(), strict=False):
    ax.semilogy(6 * np.arange(len(curvature)), curvature, "o-", markersize=3, label="λ_max")
    ax.semilogy(2 / rates, color="#d55e00", linestyle=":", label="2/lr")
    ax.set(xlabel="step", title="no warm-up" if warmup == 0 else f"warm-up of {warmup} steps", ylim=(1, 300))
    ax.legend(fontsize=8)
    axes[2].plot(losses, label=f"warm-up {warmup}")
    print(f"warm-up {warmup:>2}: λ_max at steps 0, 6, 12, 18, 24: ", end="")
    print(", ".join(f"{value:.0f}" for value in curvature[:5]), end="; ")
    print(f"loss at most {losses.max():.2f}, at the end {losses[-8:].mean():.2f}")
axes[2].set(xlabel="step", ylabel="loss on this batch")
axes[2].legend(fontsize=8)

# %% [markdown]
# Without warm-up the curvature rises from 10 to 181 within six steps, eighteen times the limit. Then the loss jumps
# higher than where it began. The jump carries the model to a place that is less steep, but much of what it had
# learned is lost, and more jumps follow. With warm-up the limit begins 41 times as high. The curvature rises here,
# too, and meets the limit, which comes down. But the steps are still short at that point: the jumps are small, and each
# brings the curvature down a little. In the end both runs live at about the same curvature, that of the edge.
# **Warm-up brings the model there in small jumps instead of large ones.**
#
# ## Adam: the same in other units
#
# Adam divides each weight's step by $d = \sqrt{\hat v} + \varepsilon$. Write $D$ for the diagonal matrix of all $d$,
# and take it as constant for a moment. Change the units in which weights are measured to $u = D^{1/2} p$. By the
# chain rule the gradient in the new units is $D^{-1/2} \nabla f$. Multiply Adam's step by $D^{1/2}$:
#
# $$p_{t+1} = p_t - \eta \, D^{-1} \nabla f
#   \qquad\Rightarrow\qquad u_{t+1} = u_t - \eta \, D^{-1/2} \nabla f$$
#
# which is plain gradient descent in $u$. So Adam is gradient descent in other units, where the Hessian is
# $D^{-1/2} H D^{-1/2}$. Its largest eigenvalue is what counts; we call it Adam's curvature.
#
# Adam's other part is momentum: $m_t = \beta m_{t-1} + (1 - \beta) \lambda p_t$ and $p_{t+1} = p_t - \eta m_t$.
# Replace both $m$ by steps, $\eta m_t = p_t - p_{t+1}$:
#
# $$p_t - p_{t+1} = \beta \, (p_{t-1} - p_t) + (1 - \beta) \, \eta \lambda \, p_t$$
#
# On the border between shrinking and growing, it jumps forever between the same two places: $p_{t-1} = -p$,
# $p_t = p$, $p_{t+1} = -p$. Insert this, and divide by $p$:
#
# $$2 = -2 \beta + (1 - \beta) \, \eta\lambda
#   \qquad\Rightarrow\qquad \lambda = \frac{2 (1 + \beta)}{1 - \beta} \cdot \frac{1}{\eta} = \frac{38}{\eta}
#   \quad\text{for } \beta = 0.9$$
#
# Averaging over old gradients makes Adam 19 times as tolerant as plain gradient descent.

# %%
def with_momentum(curvature, lr=0.01, beta=0.9, n=3000):
    p, m = 1.0, 0.0
    places = []
    for _ in range(n):
        m = beta * m + (1 - beta) * curvature * p
        p = p - lr * m
        places.append(p)
    return np.array(places)


p = with_momentum(1000.0)
same(p[1:-1] - p[2:], 0.9 * (p[:-2] - p[1:-1]) + 0.1 * 0.01 * 1000 * p[1:-1], "the steps without m", tolerance=1e-9)
border = with_momentum(38 / 0.01)
same(border[-1], -border[-2], "at the border it jumps between two places", tolerance=1e-9)
for factor in [0.99, 1.0, 1.01]:
    places = np.abs(with_momentum(factor * 38 / 0.01))
    print(f"{factor:g} times the limit: a thousand steps multiply |p| by {places[2000] / places[1000]:.1e}")

d, gradient_p = np.array([0.5, 2.0]), H @ point
new_units = np.sqrt(d) * (point - 0.1 * gradient_p / d)
same(new_units, np.sqrt(d) * point - 0.1 * gradient_p / np.sqrt(d), "Adam's step in the new units")

# %% [markdown]
# Now chapter 05's experiment again: Adam with the high learning rate 0.006, once from the first step, once with a
# warm-up of 40 steps. We draw Adam's curvature together with its limit, $38/\eta$.

# %%
MEASURED = [0, 1, 2, 4, 7, *range(10, 101, 7)]


def train(warmup, eps=1e-8, measured=MEASURED, lr=6e-3, n_steps=101, beta1=0.9, beta2=0.99):
    """Adam: the losses, the limits of all steps, and the curvatures of some; and what there is at the first step."""
    model, top = new_model(), np.zeros(n_weights)
    parameters = list(model.parameters())
    m, v = np.zeros(n_weights), np.zeros(n_weights)
    losses, limits, curvature, first = [], [], [], None
    for step in range(n_steps):
        loss = model.loss(*train_data.batch(step))
        loss.backward()
        g = flat(p.grad for p in parameters)
        g *= min(1.0, 1.0 / np.linalg.norm(g))  # clipped
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        d = np.sqrt(v / (1 - beta2 ** (step + 1))) + eps
        if step in measured:
            product = hessian_of(model, probe)
            value, top = largest(lambda u, d=d, product=product: product(u / np.sqrt(d)) / np.sqrt(d), top, 8)
            curvature.append(value)
            first = first or (d, top)
        rate = lr * min(1.0, (step + 1) / (warmup + 1))
        update = rate * m / (1 - beta1 ** (step + 1)) / d
        for p, change in zip(parameters, parts(update, parameters), strict=True):
            p.data -= change
            p.grad = None
        losses.append(loss.item())
        limits.append(38 / rate)
    return np.array(losses), np.array(limits), np.array(curvature), first


adam = {warmup: train(warmup) for warmup in [0, 40]}

# %% tags=["sampled"]
figure, axes = picture(10, 3.4, columns=3)
for ax, (warmup, (losses, limits, curvature, _)) in zip(axes, adam.items(), strict=False):
    ax.semilogy(MEASURED, curvature, "o-", markersize=3, label="curvature")
    ax.semilogy(limits, color="#d55e00", linestyle=":", label="38/lr")
    ax.set(xlabel="step", title="no warm-up" if warmup == 0 else f"warm-up of {warmup} steps", ylim=(200, 1e6))
    ax.legend(fontsize=8)
    axes[2].plot(np.convolve(losses, np.ones(9) / 9, mode="valid"), label=f"warm-up {warmup}")
    above = int((curvature > limits[MEASURED]).sum())
    print(f"warm-up {warmup:>2}: curvature above the limit at {above} of {len(MEASURED)} measured steps; ", end="")
    print(f"loss at the end {losses[-10:].mean():.2f}")
axes[2].set(xlabel="step", ylabel="loss (mean of 9 steps)")
axes[2].legend(fontsize=8)
print("Adam's curvature at steps 0, 1 and 2, no warm-up:", adam[0][2][:3].round(-2).astype(int))

# %% [markdown]
# At step 0 Adam's curvature is enormous. By step 2 it is a small part of that, in both runs. What is so special about
# the first step? After one gradient, $\sqrt{\hat v} = |g|$. A weight whose gradient happens to be nearly zero in the
# first batch is divided by nearly zero. In Adam's units it is extremely steep:

# %% tags=["sampled"]
d, top = adam[0][3]
steepest = (top**2).argmax()
print(f"{top[steepest] ** 2:.0%} of the steepest direction is a single one of the {n_weights:,} weights; ", end="")
print(f"its gradient is {d[steepest]:.0e}, that of a typical weight {np.median(d):.0e}")

# %% [markdown]
# A striking number; but is it the reason why the run without warm-up learns so little? A picture suggests
# explanations, and an experiment tests them. With $\varepsilon = 0.001$ in place of $10^{-8}$ nothing is divided by
# nearly zero any more:

# %%
large_eps = train(0, eps=1e-3, measured=[0])

# %% tags=["sampled"]
print(f"ε = 0.001, no warm-up: curvature at step 0 {large_eps[2][0]:.0f}, limit 6333; ", end="")
print(f"loss at the end {large_eps[0][-10:].mean():.2f}")

# %% [markdown]
# The first step is now below the limit, and the run ends on the same plateau. So the steepness of a few weights in
# the first step is *not* the reason, and the high curvatures of later steps are probably the signs of a run in trouble
# and not its beginning. How did it get there? Chapter 05 has seen it: in the first steps all weights move
# together, by a third of their size. Over such a distance the loss is no parabola, and a curvature, which describes
# the loss nearby, says nothing about where one lands. Warm-up does both: it keeps the first steps so short that the
# gradient can be trusted, and it keeps the learning rate below what the curvature allows.
#
# Two more things should be said. $D$ changes with every step, and the training batches differ from the one on
# which we measure, so $38/\eta$ is a guide here, and not a law. And warm-up does not help every run: when the
# learning rate is low, all is below the limit from the beginning.
#
# ## The library's code
#
# The library does for arrays what our tape does for numbers. Inside `tg.higher_order`, every node that is recorded is
# replaced by one that also keeps its op, its operands and its options. Other training does not pay for this:

# %%
show(tg.higher_order, RepeatableNode.pull)

# %% [markdown]
# `pull` is where a backward becomes recorded. If ordinary arrays arrive, everything is as in chapter 00. If tensors
# arrive, the op runs again, on *traced arrays*: tensors that have the attributes and methods of NumPy's arrays. The
# op gets a backend `Tracing`, whose `xp` is not NumPy but the library itself. An op's code cannot tell the
# difference. (A fused op would be hard to trace; it names a composition of plain ops, which runs instead. And where
# the op draws random numbers, as dropout does, the generator is set back, so that it draws the same again.)
#
# Let us take the step apart for tanh. This is the op, and this is what happens when we run it on a traced array:

# %%
show(tg.tanh)
x = tg.Tensor(np.array([0.4, -1.0]), requires_grad=True)
with tg.higher_order():
    y = tg.tanh(x)
print(f"the node is a {type(y.node).__name__}, and keeps {y.node.op.__name__} of {y.node.operands[0].numpy()}")

traced = TracedArray.of(x)
result, backward = tg.tanh.__wrapped__(Tracing(load("numpy")), traced)  # the function under @op
dx = backward(TracedArray.of(tg.Tensor(np.ones(2))))
names, node = [], dx.node
while not node.is_leaf:
    names.append(node.name)
    node = next(edge[0] for edge in node.parents if edge is not None)
print("the backward was recorded; from its result back to x:", " <- ".join(names))
(tg.sum(dx)).backward()
t = np.tanh(x.numpy())
same(x.grad, -2 * t * (1 - t**2), "its gradient, and the second derivative of tanh")

# %% [markdown]
# On top of it there are five small functions. `tg.gradients(output, inputs)` returns gradients instead of adding them
# to `.grad`; with `create_graph=True` they are recorded. `tg.grad(f)` is the function that computes the gradient of
# $f$. `tg.hvp` is Pearlmutter's trick in one line.

# %%
show(tg.grad, tg.hvp)

# %% [markdown]
# The last two have names from the *Jacobian* $J$, the table of all derivatives of a function with several results,
# $J_{ij} = \partial y_i / \partial x_j$. A backward pass computes $dx_j = \sum_i dy_i J_{ij}$: a vector times the
# Jacobian, hence `tg.vjp`. What about $J v$, how the results change if the inputs move along $v$? (To compute it is
# called *forward mode*.) No new code is needed:
# $\langle dx, v \rangle = \sum_i dy_i \sum_j J_{ij} v_j = \langle dy, J v \rangle$ is linear in $dy$, so its
# gradient with respect to $dy$ is $J v$:

# %%
show(tg.jvp)

# %% [markdown]
# ## The same numbers
#
# The neuron, by our tape and by the library; the Jacobian; and the GPT.

# %%
def neuron_t(p):
    return neuron(p[0], p[1], tg.tanh)


v = np.array([math.cos(1.0), math.sin(1.0)])
same(Hv, tg.hvp(neuron_t, [point], [v])[0], "H v of the neuron, by our tape and by tg.hvp")
same([da.data, db.data], tg.grad(neuron_t)(point), "its gradient")
same(third, tg.grad(tg.grad(tg.grad(tg.tanh)))(np.array(0.4)), "the third derivative of tanh")

W, moved = rng.normal(size=(3, 2)), 1e-6 * v
_, tangent = tg.jvp(lambda x: tg.tanh(tg.Tensor(W) @ x), [point], [v])
differences = (np.tanh(W @ (point + moved)) - np.tanh(W @ (point - moved))) / 2e-6
same(differences, tangent, "J v, by differences and by tg.jvp", tolerance=1e-8)

tiny = new_model(GPTConfig(vocab_size=CONFIG.vocab_size, block_size=32, n_layer=1, n_head=2, n_embd=8, bias=False))
tiny.astype("float64")
weights = list(tiny.parameters())
v = rng.normal(size=tiny.num_params())
sides = []
for move in (1e-6, -2e-6):
    for p, change in zip(weights, parts(move * v, weights), strict=True):
        p.data += change
    sides.append(flat(x.data for x in tg.gradients(tiny.loss(*probe), weights)))
for p, change in zip(weights, parts(1e-6 * v, weights), strict=True):
    p.data += change
Hv = hessian_of(tiny, probe)(v)
same((sides[0] - sides[1]) / 2e-6, Hv, "H v of a GPT, by differences of gradients", tolerance=1e-6)

# %% [markdown]
# ## Mistakes that people make
#
# **Choosing too late.** Whether a gradient can be recorded is decided before the forward pass, because the nodes have
# to keep their operands. The library refuses, and says what to do:

# %%
x = tg.Tensor(np.array([0.4, -1.0]), requires_grad=True)
y = tg.sum(tg.tanh(x))
try:
    tg.gradients(y, x, create_graph=True)
except RuntimeError as error:
    print(error)

# %% [markdown]
# **Power iteration for the largest curvature.** It finds the eigenvalue that is largest *in size*. At its start the
# GPT has a negative one that is larger in size than all positive ones:

# %%
v, product = start, hessian_of(new_model(), probe)
for _ in range(30):
    v = product(v / np.linalg.norm(v))
unit = v / np.linalg.norm(v)
print(f"30 steps of power iteration: {unit @ product(unit):.1f}; Lanczos: {at_start[0]:.1f} to {at_start[-1]:.1f}")

# %% [markdown]
# **A vector that is not constant.** In $\langle \nabla f, v \rangle$ we treated $v$ as a constant. If $v$ is the
# gradient itself and is left in the graph, both factors of the product are differentiated, and the result is twice
# $H v$. Take its plain array to make it a constant:

# %%
p = tg.Tensor(point, requires_grad=True)
with tg.higher_order():
    g = tg.gradients(neuron_t(p), p, create_graph=True)
expected = tg.hvp(neuron_t, [point], [g.data])[0].numpy()
print("H g:              ", expected)
print("with v = g.data:  ", tg.gradients(tg.sum(g * g.data), p, retain_graph=True).numpy())
print("with v = g:       ", tg.gradients(tg.sum(g * g), p).numpy())

# %% [markdown]
# **A step that is too small.** For the first derivative, $10^{-6}$ was a good step. For the second it is too small,
# and $10^{-8}$ gives nonsense:

# %% tags=["sampled"]
for h in [1e-2, 1e-4, 1e-6, 1e-8]:
    print(f"h = {h:.0e}: second derivative of sin at 1 {second_difference(np.sin, 1.0, h):.6f}")
print(f"-sin(1):   {-math.sin(1.0):36.6f}")

# %% [markdown]
# ## Exercises
#
# The tests are in [`exercises/curvature.py`](exercises/curvature.py), possible answers in
# [`solutions/curvature.py`](solutions/curvature.py).
#
# **1.** The whole Hessian of a function with few inputs, from Hessian-vector products. `tg.hvp(f, [x], [v])` returns
# a tuple with one tensor. (Hint: which $v$ picks out a column of a matrix?)

# %%
def hessian(f, x):
    """The Hessian (n, n) at x (n,) of f, a function from a tensor (n,) to a tensor with one element."""
    ...


exercise(hessian, tests.hessian)

# %% [markdown]
# **2.** The *trace* of $H$ is the sum of its diagonal, which is also the sum of all eigenvalues: $n$ times the mean
# curvature. Estimate it from products alone. Draw vectors whose entries are 1 or -1, each with probability one half.
# What is the mean of $v \cdot H v = \sum_{ij} v_i v_j H_{ij}$? (Hint: the double sum of chapter 05.)

# %%
def trace(product, n, n_samples, rng):
    """Estimate the trace of an (n, n) matrix from product(v) for n_samples vectors v, drawn from rng."""
    ...


exercise(trace, tests.trace)

# %% [markdown]
# **3.** Momentum is often written without the factor $1 - \beta$:
# $p_{t+1} = p_t - \eta \lambda p_t + \beta (p_t - p_{t-1})$. What is the largest learning rate $\eta$ now?

# %%
def largest_rate(curvature, beta):
    """The learning rate at which steps with this momentum begin to grow on a parabola of this curvature."""
    ...


exercise(largest_rate, tests.largest_rate)

# %% [markdown]
# ## What you can use now
#
# `tg.higher_order`, `tg.gradients`, `tg.grad`, `tg.vjp`, `tg.jvp` and `tg.hvp`; `tg.sum`; and to look inside,
# `tensorgrad.second_order.RepeatableNode`, `tensorgrad.tracing.TracedArray`, `tensorgrad.tracing.Tracing` and
# `tensorgrad.backend.load` (a backend by its name). From earlier chapters this one used `tg.tanh`, `tg.Tensor`,
# `tg.manual_seed`, `tg.use_backend`, `gpt.model.GPT`, `gpt.config.GPTConfig`, `gpt.data.load_text`,
# `gpt.data.make_loaders` and `gpt.tokenizer.CharTokenizer`.
#
# ## Sources
#
# - Barak Pearlmutter, [Fast exact multiplication by the Hessian](https://doi.org/10.1162/neco.1994.6.1.147), 1994.
# - Jeremy Cohen and others, [Gradient descent on neural networks typically occurs at the edge of
#   stability](https://arxiv.org/abs/2103.00065), 2021, and [Adaptive gradient methods at the edge of
#   stability](https://arxiv.org/abs/2207.14484), 2022: the two experiments with the curvature, and the limit
#   $38/\eta$ of Adam.
# - Justin Gilmer and others, [A loss curvature perspective on training instability in deep
#   learning](https://arxiv.org/abs/2110.04369), 2021, and Dayal Kalra and Maissam Barkeshli, [Why warmup the learning
#   rate?](https://arxiv.org/abs/2406.09405), 2024: warm-up seen through the curvature.
# - Dougal Maclaurin and others, [autograd](https://github.com/HIPS/autograd): gradients of gradients for NumPy, by
#   tracing its functions; `grad` and `hvp` follow its form.
#
# This was the last chapter. All of them are in the [list of chapters](index.md).
