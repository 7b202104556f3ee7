# %% [markdown]
# # 00 Gradients
#
# Training a model means asking one question, millions of times: *if I change this number a little, how much does the
# result change?* The answer is a derivative. This chapter computes derivatives by hand, by trial, and then by a
# program of 60 lines that can differentiate any formula you write. The last section shows that the library's own
# program works in the same way.
#
# ## What you will be able to do
#
# - say what a derivative is, and check one with two evaluations of the function,
# - apply the chain rule to a formula of several steps, forwards and backwards,
# - write a *tape*: a record of what was computed, along which gradients flow back,
# - read [`tensorgrad/autograd/tape.py`](../tensorgrad/autograd/tape.py), the tape of the library.
#
# You need Python, and from school the rules for derivatives: of a product, of a quotient and of $e^x$. Everything
# else is explained.

# %%
import math

import numpy as np
from course import exercise, page, picture, same, show
from exercises import gradients as tests

import tensorgrad as tg

# %% [markdown]
# ## The idea
#
# Take a function of one number, $f(x) = x^2$. At $x = 3$ it is 9. Move $x$ by a small step $h$, and $f$ moves too.
# The derivative is the ratio of the two movements when the step is very small:
#
# $$f'(x) = \lim_{h \to 0} \frac{f(x + h) - f(x)}{h}$$
#
# We can just try it:

# %%
def f(x):
    return x**2


for h in [1, 0.1, 0.01, 0.001]:
    print(f"h = {h:<6} (f(3 + h) - f(3)) / h = {(f(3 + h) - f(3)) / h:.4f}")

# %% [markdown]
# It goes to 6. By hand, we get the same in three lines:
#
# $$\frac{(x + h)^2 - x^2}{h} = \frac{x^2 + 2xh + h^2 - x^2}{h} = \frac{2xh + h^2}{h} = 2x + h \;\to\; 2x$$
#
# Whenever this course derives a formula, it also checks the lines in between with numbers. A derivation that you have
# checked is one that you can trust:

# %%
x, h = 3.0, 0.001
same((x**2 + 2 * x * h + h**2 - x**2) / h, (f(x + h) - f(x)) / h, "the second expression and the first")
same(2 * x + h, (f(x + h) - f(x)) / h, "the last expression and the first", tolerance=1e-9)

# %% [markdown]
# ### A better way to try
#
# The result was $2x + h$: the trial is wrong by $h$. If we step to both sides of $x$, the two errors cancel:
#
# $$\frac{(x + h)^2 - (x - h)^2}{2h} = \frac{4xh}{2h} = 2x$$
#
# For $x^2$ this *central difference* is exact. For other functions its error is about $h^2$, which is much less than
# $h$. But $h$ cannot be as small as we like. A computer's numbers have 16 digits. When $h$ is tiny, $f(x + h)$ and
# $f(x - h)$ agree in nearly all of them, and the few digits that differ are mostly rounding. The picture shows both
# effects for $f = \sin$.

# %%
steps = 10.0 ** np.arange(-14, 0.25, 0.25)
one_sided = np.abs((np.sin(1 + steps) - np.sin(1)) / steps - np.cos(1))
central = np.abs((np.sin(1 + steps) - np.sin(1 - steps)) / (2 * steps) - np.cos(1))

figure, ax = picture()
ax.loglog(steps, one_sided, label="one step to the right")
ax.loglog(steps, central, label="one step to each side")
ax.set(xlabel="step h", ylabel="error of the derivative of sin at 1", ylim=(1e-13, 1))
ax.legend()
print(f"best step for central differences: about {steps[central.argmin()]:.0e}, error {central.min():.0e}")

# %% [markdown]
# Read the picture from the right to the left, from large steps to small ones. First both errors shrink. With a step
# that is 10 times smaller, the error of one step is 10 times smaller, that of the central difference 100 times. Then
# rounding takes over, and the errors grow again. A step near $10^{-6}$ to $10^{-5}$ is right for numbers of 16
# digits. That is what the library's gradient check uses.
#
# Here is that check in three lines. We will use it in every chapter:

# %%
def derivative(f, x, h=1e-6):
    """The derivative of f at x by a central difference."""
    return (f(x + h) - f(x - h)) / (2 * h)


same(derivative(math.sin, 1.0), math.cos(1.0), "the derivative of sin, and cos", tolerance=1e-9)

# %% [markdown]
# ## The chain rule
#
# A model is a long formula made of short steps. Take a very small one, a single *neuron*. It multiplies its input $x$
# by a number $w$, its **weight**, and puts the product into the function tanh, which maps every number to one between
# -1 and 1. The result should be 1, the *target*. The **loss** $L$ says how wrong it is:
#
# $$a = w x, \qquad b = \tanh a, \qquad c = b - 1, \qquad L = c^2$$
#
# We need the derivative of tanh. It is defined as $\tanh a = (e^a - e^{-a}) / (e^a + e^{-a})$. The derivative of
# $e^{-a}$ is $-e^{-a}$, so the numerator and the denominator are each other's derivative. The quotient rule gives
#
# $$\tanh' a = \frac{(e^a + e^{-a})^2 - (e^a - e^{-a})^2}{(e^a + e^{-a})^2} = 1 - \tanh^2 a$$
#
# How does the loss $L$ change with $w$? Change $w$ by a little: $a$ changes by $x$ times that. $b$ changes by
# $1 - \tanh^2 a$ times the change of $a$. And so on: each step multiplies the change that reaches it by its own
# derivative. This is the chain rule:
#
# $$\frac{dL}{dw} = \frac{dL}{dc} \cdot \frac{dc}{db} \cdot \frac{db}{da} \cdot \frac{da}{dw}
#   = 2c \cdot 1 \cdot (1 - b^2) \cdot x$$
#
# Let us check each factor, and then their product:

# %%
w, x = 0.7, 1.5
a = w * x
b = math.tanh(a)
c = b - 1
L = c**2


def loss(w):
    return (math.tanh(w * x) - 1) ** 2


same(derivative(lambda c: c**2, c), 2 * c, "dL/dc = 2 c", tolerance=1e-8)
same(derivative(math.tanh, a), 1 - b**2, "db/da = 1 - b²", tolerance=1e-8)
same(derivative(lambda w: w * x, w), x, "da/dw = x", tolerance=1e-8)
same(derivative(loss, w), 2 * c * 1 * (1 - b**2) * x, "dL/dw, the product of all", tolerance=1e-8)

# %% [markdown]
# ### Backwards is cheaper
#
# The product can be computed from either end. A model has *one* loss and *millions* of weights. If we begin at the
# weights, each of them needs its own pass through the formula. If we begin at the loss, a single pass serves all of
# them: first $dL/dc$, then from it $dL/db$, then $dL/da$. From there, one more product gives $dL/dw = dL/da \cdot x$,
# and another one $dL/dx = dL/da \cdot w$. This is **backpropagation**, or reverse-mode differentiation.
#
# In code, we write `dy` for the derivative of the loss with respect to a result `y`. Each step has a small function,
# its **backward**: given `dy`, it returns `dx`, the derivative with respect to the step's input.

# %%
dL = 1.0  # the loss with respect to itself
dc = dL * 2 * c
db = dc * 1
da = db * (1 - b**2)
dw, dx = da * x, da * w
print(f"dL/dw = {dw:.6f}, dL/dx = {dx:.6f}")
same(dw, derivative(loss, w), "dL/dw backwards, and by differences", tolerance=1e-8)

# %% [markdown]
# ## A tape in 60 lines
#
# Nobody wants to write the backward pass of a large model by hand, and nobody has to. While the formula is computed,
# we record each step: what it computed, from which inputs, and its backward. The record is called a **tape**. To get
# the gradients we go through the tape from its end to its beginning.
#
# One more rule is needed. If a number is used twice, as $x$ in $x \cdot x$, the loss changes through both uses, and
# their contributions **add up**:
#
# $$\frac{d(x \cdot x)}{dx} = x + x = 2x$$

# %%
class Value:
    """A number that remembers how it was computed."""

    count = 0

    def __init__(self, data, parents=(), backward=None):
        self.data = data
        self.parents = parents  # the values that it was computed from
        self.backward_step = backward  # from dy to the gradient of each parent
        self.grad = 0.0
        Value.count += 1
        self.sequence = Value.count  # a value is always later than its parents

    def __add__(self, other):
        other = as_value(other)
        return Value(self.data + other.data, (self, other), lambda dy: (dy, dy))

    def __mul__(self, other):
        other = as_value(other)
        return Value(self.data * other.data, (self, other), lambda dy: (dy * other.data, dy * self.data))

    def __pow__(self, n):
        return Value(self.data**n, (self,), lambda dy: (dy * n * self.data ** (n - 1),))

    def tanh(self):
        y = math.tanh(self.data)
        return Value(y, (self,), lambda dy: (dy * (1 - y**2),))

    def exp(self):
        y = math.exp(self.data)
        return Value(y, (self,), lambda dy: (dy * y,))

    def backward(self):
        """Set .grad of this value and of all that it was computed from."""
        found, waiting = {self}, [self]
        while waiting:
            for parent in waiting.pop().parents:
                if parent not in found:
                    found.add(parent)
                    waiting.append(parent)
        self.grad = 1.0
        for value in sorted(found, key=lambda v: v.sequence, reverse=True):  # the latest first
            if value.backward_step:
                for parent, gradient in zip(value.parents, value.backward_step(value.grad), strict=True):
                    parent.grad += gradient  # add: it may have been used elsewhere, too

    def __neg__(self):
        return self * -1

    def __sub__(self, other):
        return self + -as_value(other)

    __radd__, __rmul__ = __add__, __mul__


def as_value(x):
    return x if isinstance(x, Value) else Value(x)


# %% [markdown]
# Why "the latest first"? A gradient may be passed on only when *all* its contributions have arrived. Everything that
# uses a value was made after it, so going from the latest to the earliest visits all its uses before the value itself.
# (Such an order is called a topological order.) The neuron again:

# %%
w, x = Value(0.7), Value(1.5)
L = ((w * x).tanh() - 1) ** 2
L.backward()
print(f"dL/dw = {w.grad:.6f}, dL/dx = {x.grad:.6f}")
same(w.grad, dw, "dL/dw by the tape, and by hand")
same(x.grad, dx, "dL/dx by the tape, and by hand")

# %% [markdown]
# The tape differentiates anything that these operations can express. Here it fits a curve: three neurons learn $\sin$
# at 15 points. The loss is the mean of the squared errors. Each step computes it, asks for the gradients, and moves
# every weight a little *against* its gradient, because the gradient says in which direction the loss grows. This is
# **gradient descent**.

# %%
xs = np.linspace(-2, 2, 15)
rng = np.random.default_rng(0)
weights = [[Value(float(v)) for v in rng.normal(size=3)] for _ in range(3)]  # of each neuron: in, offset, out


def predict(x):
    return sum(((w_in * x + offset).tanh() * w_out for w_in, offset, w_out in weights), start=Value(0.0))


losses = []
for step in range(300):
    loss_value = sum(((predict(x) - math.sin(x)) ** 2 for x in xs), start=Value(0.0)) * (1 / len(xs))
    for neuron in weights:
        for weight in neuron:
            weight.grad = 0.0
    loss_value.backward()
    for neuron in weights:
        for weight in neuron:
            weight.data -= 0.2 * weight.grad
    losses.append(loss_value.data)
print(f"loss before {losses[0]:.4f}, after 300 steps {losses[-1]:.6f}")

figure, (left, right) = picture(9, 3.2, columns=2)
left.semilogy(losses)
left.set(xlabel="step", ylabel="mean squared error")
grid = np.linspace(-3, 3, 100)
right.plot(grid, np.sin(grid), label="sin")
right.plot(grid, [predict(x).data for x in grid], label="three neurons")
right.plot(xs, np.sin(xs), "o", markersize=4, label="training points")
right.set(xlabel="x", ylabel="y")
right.legend()

# %% [markdown]
# Between the training points the neurons nearly agree with sin. Outside of them (beyond -2 and 2) they were never
# told what to do, and they are wrong. Remember this when a language model answers a question that was not in its
# data.
#
# ## The library's code
#
# The library's tape does the same for arrays. An operation is a function that returns its result and its backward.
# Its first argument, `k`, is the backend that computes: `k.xp` is NumPy, or a library with the same functions, and
# `k.floating` turns whole numbers into floating-point numbers.

# %%
show(tg.tanh, tg.exp)

# %% [markdown]
# `@op` is the recorder: it calls the function, and records a `Node` with the result's shape, the backward, and an
# *edge* to each parent. And this is the pass through the tape. Compare it with `Value.backward`: `pending` holds the
# nodes that wait, in a *heap*, a list that quickly gives its first element, here the latest node; `pull` calls the
# node's backward; `pending.add` adds up what arrives. The rest reports to observers (chapter 00b uses one) and
# refuses mistakes.

# %%
show(tg.autograd.tape.backward, tg.autograd.tape.Node.pull)

# %% [markdown]
# One difference is worth knowing. A `Value` refers to its parents, so that all results stay in memory. A node refers
# only to earlier nodes and to its backward function. What stays in memory is what that function uses: in `tanh` and
# in `exp` the result `y`. Everything else is freed as soon as nobody needs it.
#
# ## The same numbers
#
# A `tg.Tensor` is the library's `Value`, with an array in place of the number. `requires_grad=True` asks for its
# gradient, and `item()` returns the number of a tensor that has only one.

# %%
w_t = tg.Tensor(np.array(0.7), requires_grad=True)
x_t = tg.Tensor(np.array(1.5), requires_grad=True)
loss_t = (tg.tanh(w_t * x_t) - 1) ** 2
loss_t.backward()
same(loss_t.item(), L.data, "the loss")
same(w_t.grad, w.grad, "dL/dw")
same(x_t.grad, x.grad, "dL/dx")

# %% [markdown]
# ### Watch it, step by step
#
# `tg.record()` records every operation, and `page` shows the record below. Press *Step*. First come the four
# operations forward, then the same four backward. Each step shows its formula, its numbers, the gradient that arrives
# and those that leave. All of this we have computed by hand. (On the page, `a` and `b` are the two operands of an
# operation, not the $a$ and $b$ of our formula. GitHub hides such a page: run the chapter, or build the site with
# `python chapters/build.py site`.)
#
# At the top the page answers a question that one often has: which operation made the largest gradient, and why?

# %%
w_t.grad = x_t.grad = None
with tg.record() as steps:
    ((tg.tanh(w_t * x_t) - 1) ** 2).backward()
page(steps)

# %% [markdown]
# ## Mistakes that people make
#
# **Forgetting that gradients add up.** With `=` in place of `+=`, a value that is used twice gets one contribution
# only. The formula $x \cdot x$ shows it:

# %%
class Forgetful(Value):
    def __mul__(self, other):
        return Forgetful(self.data * other.data, (self, other), lambda dy: (dy * other.data, dy * self.data))

    def backward(self):
        self.grad = 1.0
        for parent, gradient in zip(self.parents, self.backward_step(self.grad), strict=True):
            parent.grad = gradient  # the mistake


wrong = Forgetful(3.0)
(wrong * wrong).backward()
right = Value(3.0)
(right * right).backward()
print(f"with = the gradient of x·x at 3 is {wrong.grad}, with += it is {right.grad}")

# %% [markdown]
# **Forgetting to set gradients to zero.** Because they add up, the next step's gradients are added to this one's. The
# direction of the step is then a sum of old directions. The library adds, too, on purpose (chapter 12 uses it). In a
# training loop, the optimizer, which moves the weights (chapter 05), clears the gradients after each step with
# `optimizer.zero_grad()`. Without that:

# %%
x_t.grad = None
(x_t * 2).backward()
first = float(x_t.grad)
(x_t * 2).backward()
print(f"after one backward {first}, after a second without zeroing {float(x_t.grad)}")

# %% [markdown]
# **A step that is too small for the check.** With `h=1e-14`, only the first two digits of the difference are right:

# %%
print(f"h = 1e-06: {derivative(math.sin, 1.0):.10f}")
print(f"h = 1e-14: {derivative(math.sin, 1.0, h=1e-14):.10f}")
print(f"cos(1):    {math.cos(1.0):.10f}")

# %% [markdown]
# **Going through the graph again and again.** A simple recursive backward, which calls itself for every parent,
# visits a value once for each *path* that leads to it. In $x_1 = x_0 + x_0$, $x_2 = x_1 + x_1$, ... the number of
# paths doubles with every line. Our loop visits each value once:

# %%
def doubled(n):
    x = y = Value(1.0)
    for _ in range(n):
        y = y + y
    return x, y


def recursive(value, dy):
    """Go back along every path; return the number of visits."""
    value.grad += dy
    gradients = value.backward_step(dy) if value.backward_step else ()
    return 1 + sum(recursive(parent, gradient) for parent, gradient in zip(value.parents, gradients, strict=True))


for n in 5, 10, 15:
    print(f"{n:2} doublings: {recursive(doubled(n)[1], 1.0):6,} visits, where {n + 1} are enough")
x0, y = doubled(60)
y.backward()
print(f"60 doublings with our loop: the gradient is 2 to the 60th: {x0.grad == 2.0**60}")

# %% [markdown]
# ## Exercises
#
# Replace the three dots, and run the cell. The tests are in
# [`exercises/gradients.py`](exercises/gradients.py), one possible answer in
# [`solutions/gradients.py`](solutions/gradients.py). Try first.
#
# **1.** The sigmoid squashes any number to between 0 and 1: $y = 1 / (1 + e^{-x})$. Write its backward *from its
# result y*: $dx$ from $y$ and $dy$. (Hint: $y' = \frac{1}{1 + e^{-x}} \cdot \frac{e^{-x}}{1 + e^{-x}}$. Write both
# factors with $y$.)

# %%
def sigmoid_backward(y, dy):
    """Return dx for y = sigmoid(x); y and dy are numbers."""
    ...


exercise(sigmoid_backward, tests.sigmoid_backward)

# %% [markdown]
# **2.** Division $y = a / b$. Return both gradients, $da$ and $db$.

# %%
def divide_backward(a, b, dy):
    """Return (da, db) for y = a / b; all are numbers."""
    ...


exercise(divide_backward, tests.divide_backward)

# %% [markdown]
# **3.** Newton's method finds where a function is zero: again and again, replace $x$ by $x - f(x) / f'(x)$. Write it
# with `Value`, or with `derivative`, and find $\sqrt 2$ as the zero of $x^2 - 2$.

# %%
def newton(f, x, n_steps):
    """Return x after n_steps of Newton's method; f is a function from a number to a number."""
    ...


exercise(newton, tests.newton)

# %% [markdown]
# **4.** *Which operation made the largest gradient?* The neuron has three that change the gradient: `pow`, `tanh` and
# `multiply`. (The subtraction passes it on as it is.) Find out which one makes the gradient with the largest absolute
# value. (`multiply` makes two gradients, and either may be it.) The page above can check your answer. With $w = 0.05$
# and $x = 10$ it is another operation than with $w = 0.7$ and $x = 1.5$. Do you see why?

# %%
def largest_gradient(w, x):
    """Return the name of the operation and the size of the gradient, for L = (tanh(w x) - 1)²; w and x are numbers."""
    ...


exercise(largest_gradient, tests.largest_gradient)

# %% [markdown]
# ## What you can use now
#
# Later chapters use these names of the library without explaining them again: `tg.Tensor`, `tg.tanh`, `tg.exp`,
# `tg.autograd`, `tg.record` (a page of all steps), and of tensors `backward()`, `grad`, `requires_grad`, `item()`.
#
# ## Sources
#
# - Andrej Karpathy, [micrograd](https://github.com/karpathy/micrograd), 2020: the idea of a tape of scalars as a
#   first lesson. The code here is our own; it differs in that no value refers to its own result.
# - Atilim Baydin and others, [Automatic differentiation in machine learning: a
#   survey](https://arxiv.org/abs/1502.05767), 2018: forward and reverse mode, and their history.
# - Seppo Linnainmaa, *The representation of the cumulative rounding error of an algorithm as a Taylor expansion of
#   the local rounding errors*, 1970: the first description of reverse mode.
#
# Next: [00b Tensors](00b_tensors.ipynb), where the numbers become arrays.
