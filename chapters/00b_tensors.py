# %% [markdown]
# # 00b Tensors
#
# Chapter 00 built a tape of single numbers. It works, but a model has millions of numbers, and one Python object for
# each of them would be far too slow. Models therefore compute with *arrays*: tables of numbers, handled as one value.
# The tape stays as it is. What is new is the backward of each array operation, and this chapter derives those that a
# GPT is made of: broadcasting, matrix products, softmax with cross-entropy, layer norm and GELU.
#
# ## What you will be able to do
#
# - find the backward of an array operation by writing it with indices,
# - explain why a bias's gradient is a sum, why a product's gradients are products, and where "p minus y" comes from,
# - derive the gradient of layer norm, step by step, and say what each of its three terms does,
# - check any backward with differences, by hand and with `tg.gradcheck`,
# - watch the library's tape while it works.
#
# You need chapter [00](00_gradients.ipynb), and NumPy arrays: shapes, axes, `@` for the matrix product.

# %%
import math

import numpy as np
from course import exercise, picture, same, show
from exercises import tensors as tests

import tensorgrad as tg

rng = np.random.default_rng(0)

# %% [markdown]
# ## The idea
#
# The loss stays a single number. Each element of an array is a number like those of chapter 00, with a derivative of
# its own. We keep the derivatives of an array in a second array *of the same shape*: the **gradient** of $x$ has, at
# every place, the derivative of the loss with respect to the element of $x$ at that place. In code it is `dx`.
#
# One element may influence many results, and each of these influences the loss. Contributions add up, as in chapter
# 00, so the chain rule for arrays is a sum over all results $y_i$:
#
# $$\frac{dL}{dx_j} = \sum_i \frac{dL}{dy_i} \cdot \frac{dy_i}{dx_j}$$
#
# Every backward in this chapter is this one line, applied to a different operation. The method is always the same:
# write one element of the result with indices, differentiate it, put it into the sum, and simplify until it is an
# array operation again.
#
# To check a backward we need differences for every element, and a loss. The simplest loss whose gradient with respect
# to $y$ is a given array $dy$ is $L = \sum_i dy_i\, y_i$. We draw $dy$ at random, so that no mistake can hide behind
# a special value.

# %%
def differences(f, x, h=1e-6):
    """The gradient at x of f, a function from an array to a number: a central difference for every element."""
    gradient = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[place] = h
        gradient[place] = (f(x + step) - f(x - step)) / (2 * h)
    return gradient


x = rng.normal(size=(2, 3))
dy = rng.normal(size=(2, 3))
same(dy * np.cos(x), differences(lambda x: (dy * np.sin(x)).sum(), x), "the gradient of sin, elementwise", 1e-8)

# %% [markdown]
# ## Broadcasting
#
# A bias $b$ is added to every row of a matrix: `x + b` with `x` of shape (3, 4) and `b` of shape (4,). NumPy repeats
# $b$ along the missing axis. This is called **broadcasting**. With indices:
#
# $$y_{ij} = x_{ij} + b_j$$
#
# Every $b_j$ is used in all rows $i$. The chain rule adds up its contributions:
#
# $$\frac{dL}{db_j} = \sum_i \frac{dL}{dy_{ij}} \cdot \frac{dy_{ij}}{db_j} = \sum_i dy_{ij} \cdot 1$$
#
# So `db` is `dy`, summed over the axis along which `b` was repeated. If every row is multiplied by the same weights
# instead, $y_{ij} = x_{ij} w_j$, only the inner derivative changes:
#
# $$\frac{dL}{dw_j} = \sum_i dy_{ij} \cdot x_{ij}$$

# %%
x, b, w, dy = rng.normal(size=(3, 4)), rng.normal(size=4), rng.normal(size=4), rng.normal(size=(3, 4))
same(dy.sum(axis=0), differences(lambda b: (dy * (x + b)).sum(), b), "the gradient of a bias", 1e-8)
same((dy * x).sum(axis=0), differences(lambda w: (dy * (x * w)).sum(), w), "the gradient of a factor of rows", 1e-8)

# %% [markdown]
# The rule for any operation: first compute the gradient as if nothing had been broadcast, which gives an array of the
# result's shape. Then sum it over the axes that were added in front, and over those that were stretched from 1.

# %%
def sum_to(gradient, shape):
    """Sum a gradient over the axes along which an array of this shape was broadcast."""
    while gradient.ndim > len(shape):
        gradient = gradient.sum(axis=0)
    for axis, size in enumerate(shape):
        if size == 1:
            gradient = gradient.sum(axis=axis, keepdims=True)
    return gradient


column, dy = rng.normal(size=(3, 1)), rng.normal(size=(2, 3, 4))
numeric = differences(lambda column: (dy * (column + np.zeros((2, 3, 4)))).sum(), column)
same(sum_to(dy, (3, 1)), numeric, "a column (3, 1), broadcast to (2, 3, 4)", 1e-8)

# %% [markdown]
# Copying in forward is a sum in backward. The opposite holds as well: in $s = \sum_i x_i$, every $x_i$ has the
# derivative 1, so each gets a copy of $ds$. **A sum in forward is a copy in backward.** For a mean of $n$ numbers,
# each gets $dm / n$. We will need both in layer norm.
#
# ## Matrix products
#
# Nearly all the work of a GPT is products of matrices. One element of $y = ab$ is a row of $a$ times a column of $b$:
#
# $$y_{ij} = \sum_k a_{ik} b_{kj}$$
#
# How does $y_{ij}$ change with one element of $a$, say $a_{mn}$? That element is in row $m$ only, so results in other
# rows do not depend on it. In row $m$ it is multiplied by $b_{nj}$. With $[i = m]$ for "1 if $i$ is $m$, else 0":
#
# $$\frac{dy_{ij}}{da_{mn}} = [i = m]\, b_{nj}$$
#
# Put it into the chain rule. The sum over $i$ has only one term that is not 0, the one with $i = m$:
#
# $$\frac{dL}{da_{mn}} = \sum_i \sum_j dy_{ij}\, [i = m]\, b_{nj} = \sum_j dy_{mj}\, b_{nj} = \sum_j dy_{mj}\,
#   (b^T)_{jn} = (dy\; b^T)_{mn}$$
#
# The last step reads $b_{nj}$ as an element of the transpose, because then the sum over $j$ is again a matrix
# product. In the same way, with the roles exchanged, $db = a^T dy$.

# %%
a, b, dy = rng.normal(size=(2, 3)), rng.normal(size=(3, 4)), rng.normal(size=(2, 4))
m, n = 1, 2
step = np.zeros_like(a)
step[m, n] = 1e-6
by_formula = np.zeros((2, 4))
by_formula[m] = b[n]  # row m has b_nj, all others 0
same(by_formula, ((a + step) @ b - (a - step) @ b) / 2e-6, f"all dy_ij / da_mn for m = {m}, n = {n}", 1e-8)
same(sum(dy[m, j] * b[n, j] for j in range(4)), (dy @ b.T)[m, n], "the sum over j, and the product's element")
same(dy @ b.T, differences(lambda a: (dy * (a @ b)).sum(), a), "da = dy bᵀ", 1e-8)
same(a.T @ dy, differences(lambda b: (dy * (a @ b)).sum(), b), "db = aᵀ dy", 1e-8)

# %% [markdown]
# You need not learn this by heart. `da` must have the shape of `a`, and there is only one way to make (2, 3) from
# `dy` (2, 4) and `b` (3, 4): `dy @ b.T`.
#
# In a model, $a$ often has more axes, for example (batch, time, width), while the weights $b$ are one matrix for all
# of them. NumPy broadcasts $b$ over the leading axes, and so its gradient is summed over them:

# %%
def matmul_backward(dy, a, b):
    """(da, db) of y = a @ b; leading axes may have been broadcast."""
    da = dy @ b.swapaxes(-1, -2)
    db = a.swapaxes(-1, -2) @ dy
    return sum_to(da, a.shape), sum_to(db, b.shape)


a, dy = rng.normal(size=(5, 2, 3)), rng.normal(size=(5, 2, 4))
db = matmul_backward(dy, a, b)[1]
same(db, differences(lambda b: (dy * (a @ b)).sum(), b), "a matrix that is shared by a batch of 5", 1e-8)

# %% [markdown]
# ## Softmax with cross-entropy: p minus y
#
# A language model gives a number to every possible next token: the **logits** $z$, any numbers at all. Softmax makes
# probabilities of them, positive and with the sum 1:
#
# $$p_j = \frac{e^{z_j}}{S}, \qquad S = \sum_k e^{z_k}$$
#
# The loss is small if the right token, number $t$, got a high probability: $L = -\log p_t$, the **cross-entropy**
# ($\log$ is the natural logarithm, as in NumPy). It is 0 for $p_t = 1$ and grows without limit as $p_t$ goes to 0. Its
# gradient is easiest to find if we simplify first:
#
# $$L = -\log \frac{e^{z_t}}{S} = \log S - z_t$$
#
# The derivative of the first part:
#
# $$\frac{d \log S}{dz_j} = \frac{1}{S} \cdot \frac{dS}{dz_j} = \frac{e^{z_j}}{S} = p_j$$
#
# The second part has the derivative 1 for $j = t$ and 0 otherwise. This is the **one-hot** vector $y$ of the target:
# $y_t = 1$, all other elements 0. (Here $y$ is the target, as in most books, and not a result.) Together:
#
# $$\frac{dL}{dz_j} = p_j - y_j$$

# %%
z, t = np.array([1.5, -0.3, 0.2, -2.0, 0.9]), 2
S = np.exp(z).sum()
p = np.exp(z) / S
y = np.eye(5)[t]
same(np.log(S) - z[t], -np.log(p[t]), "log S - z_t, and -log p_t")
same(differences(lambda z: np.log(np.exp(z).sum()), z), p, "the gradient of log S, and p", 1e-8)
same(differences(lambda z: np.log(np.exp(z).sum()) - z[t], z), p - y, "the gradient of the loss, and p - y", 1e-8)

figure, (left, right) = picture(9, 3, columns=2)
left.bar(range(5), p, color=["#0072b2" if j != t else "#009e73" for j in range(5)])
left.set(xlabel="token", ylabel="probability p", title="softmax; the right token is green")
right.bar(range(5), -(p - y), color=["#0072b2" if j != t else "#009e73" for j in range(5)])
right.axhline(0, color="black", linewidth=0.8)
right.set(xlabel="token", ylabel="y - p", title="where a step against the gradient moves z")
print("p - y:", np.round(p - y, 3), "sum:", abs(round((p - y).sum(), 12)))

# %% [markdown]
# Every wrong token is pushed down by the probability that it got, and the right one is pushed up by the difference
# between its probability and 1. All these movements add up to 0. If the model is already right ($p$ near $y$), hardly
# anything moves: learning stops by itself where there is nothing to learn.
#
# The function below computes the mean loss of many rows. It subtracts the largest logit first. The factor
# $e^{-\max z}$ cancels in the fraction, so that the result is the same, but $e^z$ cannot overflow.

# %%
def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def cross_entropy(z, targets):
    """The mean loss of logits z (rows, classes) with integer targets (rows,), and its gradient dz."""
    p = softmax(z)
    one_hot = np.eye(z.shape[1])[targets]
    loss = -np.log((p * one_hot).sum(axis=1)).mean()
    return loss, (p - one_hot) / len(z)  # a mean: each row gets 1 / rows


z, targets = rng.normal(size=(6, 4)), rng.integers(4, size=6)
dz = cross_entropy(z, targets)[1]
same(dz, differences(lambda z: cross_entropy(z, targets)[0], z), "the gradient of the mean loss of 6 rows", 1e-8)

# %% [markdown]
# ### Softmax alone
#
# In attention (chapter 04b), a softmax stands in the middle of the model, so we need its own backward. Take the
# logarithm, $\log p_i = z_i - \log S$, and differentiate both sides with respect to $z_j$. On the left, the chain
# rule gives $1 / p_i$ times the derivative that we look for. On the right, we know already that the derivative of
# $\log S$ is $p_j$:
#
# $$\frac{1}{p_i} \cdot \frac{dp_i}{dz_j} = [i = j] - p_j \qquad\Rightarrow\qquad
#   \frac{dp_i}{dz_j} = p_i\, ([i = j] - p_j)$$
#
# The chain rule, and the sum split into its two parts:
#
# $$dz_j = \sum_i dp_i\, p_i\, ([i = j] - p_j) = p_j\, dp_j - p_j \sum_i dp_i\, p_i
#   = p_j \left( dp_j - \sum_i p_i\, dp_i \right)$$

# %%
def softmax_backward(dp, p):
    return p * (dp - (p * dp).sum(axis=-1, keepdims=True))


z, dp = rng.normal(size=4), rng.normal(size=4)
p = softmax(z)
jacobian = np.array([differences(lambda z: softmax(z)[i], z) for i in range(4)])  # dp_i / dz_j, the "Jacobian"
same(p[:, None] * (np.eye(4) - p), jacobian, "all dp_i / dz_j", 1e-8)
same(softmax_backward(dp, p), dp @ jacobian, "dz, and the sum over i", 1e-8)

# %% [markdown]
# ## Layer norm and its gradient, derived step by step
#
# In a deep model, numbers may grow or shrink from layer to layer until nothing can be learned. **Layer norm** brings
# every row $x$ of $n$ numbers to mean 0 and variance 1: it subtracts the row's mean $\mu$ and divides by the root of
# its variance $v$, the mean of the squared distances from the mean. Then a weight $w$ and a bias $b$, which are
# learned, let the model choose another scale where it needs one:
#
# $$\mu = \frac{1}{n} \sum_j x_j, \qquad c_j = x_j - \mu, \qquad v = \frac{1}{n} \sum_j c_j^2, \qquad
#   r = \frac{1}{\sqrt{v + \epsilon}}$$
#
# $$\hat x_j = c_j\, r, \qquad y_j = \hat x_j\, w_j + b_j$$
#
# The small constant $\epsilon = 10^{-5}$ prevents a division by zero in a row of equal numbers. The gradient looks
# difficult because every $x_j$ acts on every $y_i$: directly, through the mean, and through the variance. So we go
# back one step at a time, as a tape would. We are given $dy$.
#
# **Step 1: weight and bias.** They are broadcast over the rows, so by the rule above $db = \sum dy$ and
# $dw = \sum dy\, \hat x$, summed over all rows. What reaches $\hat x$ we call $g$:
#
# $$g_j = dy_j\, w_j$$
#
# **Step 2: the product** $\hat x_j = c_j r$. It has two inputs. The one number $r$ is broadcast to all $j$, so its
# gradient is a sum. And $c_j$ gets a first contribution:
#
# $$dr = \sum_j g_j\, c_j, \qquad dc_j = g_j\, r + \dots$$
#
# **Step 3: the root** $r = (v + \epsilon)^{-1/2}$. Its derivative is $-\frac12 (v + \epsilon)^{-3/2}$, which is
# $-\frac12 r^3$:
#
# $$dv = -\frac12\, r^3\, dr$$
#
# **Step 4: the variance** $v = \frac1n \sum_j c_j^2$. Its derivative with respect to $c_j$ is $\frac2n c_j$. This is
# the second contribution to $dc_j$. Put in $dv$ from step 3 and $dr$ from step 2. Then take $r$ out of the brackets,
# and write $\hat x$ for $c\, r$, twice:
#
# $$dc_j = g_j\, r + \frac{2}{n}\, c_j\, dv
#   = g_j\, r - \frac{r^3}{n}\, c_j \sum_k g_k\, c_k
#   = r \left( g_j - \hat x_j \cdot \frac1n \sum_k g_k\, \hat x_k \right)$$
#
# **Step 5: the mean.** In $c_j = x_j - \mu$, $x_j$ gets $dc_j$ itself. $\mu$ is broadcast to all $j$, with a minus
# sign: $d\mu = -\sum_j dc_j$. And $\mu$ is a mean, so each $x_j$ gets $d\mu / n$. Together, $dx_j$ is $dc_j$ minus
# the mean of $dc$:
#
# $$dx_j = dc_j - \frac1n \sum_k dc_k$$
#
# The mean of $\hat x$ is 0, so in the mean of $dc$ the second term vanishes, and $r \cdot \text{mean}(g)$ remains.
# The result, with $\text{mean}$ over the $n$ numbers of a row:
#
# $$dx = r \left( g - \text{mean}(g) - \hat x \cdot \text{mean}(g\, \hat x) \right)$$
#
# First the steps in between, for one row:

# %%
eps, n = 1e-5, 6
x, w, b, dy = (rng.normal(size=n) for _ in range(4))
c = x - x.mean()
v = (c**2).mean()
r = 1 / np.sqrt(v + eps)
g = dy * w  # step 1

dr = (g * c).sum()  # step 2
same(dr, differences(lambda r: (g * (c * r)).sum(), np.array(r)), "step 2: dr", 1e-8)
dv = -0.5 * r**3 * dr  # step 3
same(dv, differences(lambda v: (g * c / np.sqrt(v + eps)).sum(), np.array(v)), "step 3: dv", 1e-8)


def from_c(c):
    return (g * c / np.sqrt((c**2).mean() + eps)).sum()


same(g * r + 2 / n * c * dv, differences(from_c, c), "step 4: dc, with dv", 1e-8)
xhat = c * r
dc = r * (g - xhat * (g * xhat).mean())
same(dc, differences(from_c, c), "step 4: dc, with xhat", 1e-8)
dx = dc - dc.mean()
same(dx, differences(lambda x: from_c(x - x.mean()), x), "step 5: dx", 1e-8)
same(r * (g - g.mean() - xhat * (g * xhat).mean()), dx, "the result, and step 5")

# %% [markdown]
# Now for any number of rows, forward and backward:

# %%
def layer_norm(x, w, b, eps=1e-5):
    """The normalised rows, and what backward needs."""
    c = x - x.mean(axis=-1, keepdims=True)
    r = 1 / np.sqrt((c**2).mean(axis=-1, keepdims=True) + eps)
    return c * r * w + b, (c * r, r)


def layer_norm_backward(dy, w, saved):
    """(dx, dw, db)"""
    xhat, r = saved
    g = dy * w
    dx = r * (g - g.mean(axis=-1, keepdims=True) - xhat * (g * xhat).mean(axis=-1, keepdims=True))
    return dx, sum_to(dy * xhat, w.shape), sum_to(dy, w.shape)


x, dy = rng.normal(size=(4, n)), rng.normal(size=(4, n))
dx, dw, db = layer_norm_backward(dy, w, layer_norm(x, w, b)[1])
same(dx, differences(lambda x: (dy * layer_norm(x, w, b)[0]).sum(), x), "dx of four rows", 1e-8)
same(dw, differences(lambda w: (dy * layer_norm(x, w, b)[0]).sum(), w), "dw", 1e-8)
same(db, differences(lambda b: (dy * layer_norm(x, w, b)[0]).sum(), b), "db", 1e-8)

# %% [markdown]
# ### What the three terms do
#
# The first term, $r g$, would be the whole gradient if mean and variance were constants. The other two are corrections.
# Adding the same small number to a whole row does not change the result of layer norm, nor the loss. By the chain
# rule the loss changes by that number times $\sum_j dx_j$. So this sum must be 0, and $-\text{mean}(g)$ makes it 0.
# Multiplying a row of mean 0 by a factor does not change the result either (except through $\epsilon$, which is
# tiny). So the gradient must have no part along $\hat x$: $\sum_j dx_j\, \hat x_j$ must be 0, too. The third term
# does that.

# %%
xhat = layer_norm(x, w, b)[1][0]
print(f"largest gradient                       {np.abs(dx).max():.3f}")
print(f"largest mean of a row's gradient       {np.abs(dx.mean(axis=1)).max():.1e}")
print(f"largest part along xhat                {np.abs((dx * xhat).mean(axis=1)).max():.1e}")

# %% [markdown]
# ## GELU
#
# Between two matrix products a model needs a function that is not a straight line, or else the two products could be
# replaced by one. GPT-2 uses GELU: $y = x\, \Phi(x)$, where $\Phi(x)$ is the probability that a normally distributed
# random number (of mean 0 and variance 1) is below $x$. Large $x$ pass almost as they are, very negative ones become
# almost 0, and in between the change is smooth. The derivative of $\Phi$ is the bell curve
# $\varphi(x) = e^{-x^2/2} / \sqrt{2\pi}$, so by the product rule:
#
# $$y' = \Phi(x) + x\, \varphi(x)$$
#
# GPT-2 was trained with an approximation that needs only a tanh:
#
# $$y = \frac{x}{2} (1 + \tanh u), \qquad u = s\, (x + k x^3), \qquad s = \sqrt{2 / \pi}, \quad k = 0.044715$$
#
# The product rule and the chain rule, with $\tanh' = 1 - \tanh^2$ from chapter 00:
#
# $$\frac{du}{dx} = s\, (1 + 3 k x^2), \qquad
#   y' = \frac{1 + \tanh u}{2} + \frac{x}{2} (1 - \tanh^2 u) \frac{du}{dx}$$

# %%
s, k = math.sqrt(2 / math.pi), 0.044715


def gelu_exact(x):
    """x Phi(x), and its derivative"""
    probability = 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return x * probability, probability + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def gelu(x):
    """GPT-2's form, and its derivative"""
    tanh = np.tanh(s * (x + k * x**3))
    return x / 2 * (1 + tanh), (1 + tanh) / 2 + x / 2 * (1 - tanh**2) * s * (1 + 3 * k * x**2)


grid = np.linspace(-4, 4, 81)
du = (s * ((grid + 1e-6) + k * (grid + 1e-6) ** 3) - s * ((grid - 1e-6) + k * (grid - 1e-6) ** 3)) / 2e-6
same(s * (1 + 3 * k * grid**2), du, "du/dx", 1e-8)
for function in (gelu, gelu_exact):
    numeric = differences(lambda x: function(x)[0].sum(), grid)
    same(function(grid)[1], numeric, f"the derivative of {function.__name__}", 1e-7)
print(f"the two forms differ by at most {np.abs(gelu(grid)[0] - gelu_exact(grid)[0]).max():.0e}")

figure, ax = picture(7, 3)
ax.plot(grid, gelu(grid)[0], label="GELU")
ax.plot(grid, gelu(grid)[1], label="its derivative")
ax.set(xlabel="x", ylim=(-0.5, 4))
ax.legend()

# %% [markdown]
# ## All of it in one network
#
# Our points are three arms of a spiral, 100 points each. From the two coordinates of a point the network has to say
# to which arm it belongs. No straight line separates the arms. The network uses each operation of this chapter once
# or twice, and its backward calls their backwards in reverse order. This is what a tape does for us; here it is
# written out one time.

# %%
def network(weights, x, targets):
    """The loss, the logits, and the gradient of every weight."""
    w1, b1, scale, shift, w2, b2 = weights
    h = x @ w1 + b1
    normal, saved = layer_norm(h, scale, shift)
    active, slope = gelu(normal)
    z = active @ w2 + b2
    loss, dz = cross_entropy(z, targets)

    dactive, dw2 = matmul_backward(dz, active, w2)
    dh, dscale, dshift = layer_norm_backward(dactive * slope, scale, saved)
    dx, dw1 = matmul_backward(dh, x, w1)
    return loss, z, [dw1, sum_to(dh, b1.shape), dscale, dshift, dw2, sum_to(dz, b2.shape)]


arm = np.repeat(np.arange(3), 100)
radius = np.tile(np.linspace(0.1, 1, 100), 3)
angle = 4 * radius + arm * 2 * np.pi / 3 + rng.normal(scale=0.1, size=300)
points = 2 * np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)

width = 24
start = [rng.normal(size=(2, width)), rng.normal(size=width), np.ones(width), np.zeros(width),
         rng.normal(size=(width, 3)) / np.sqrt(width), np.zeros(3)]


def train(weights):
    losses = []
    for _ in range(1500):
        loss, z, gradients = network(weights, points, arm)
        weights = [weight - 0.5 * gradient for weight, gradient in zip(weights, gradients)]
        losses.append(loss)
    return weights, losses


weights, losses = train(start)
z = network(weights, points, arm)[1]
print(f"loss: {losses[0]:.3f} before, {losses[-1]:.3f} after 1500 steps (guessing has log 3 = {math.log(3):.3f})")
print(f"right: {(z.argmax(axis=1) == arm).mean():.0%} of the points")

figure, (left, right) = picture(9, 3.6, columns=2)
left.semilogy(losses)
left.set(xlabel="step", ylabel="loss")
side = np.linspace(-2.4, 2.4, 200)
plane = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
answer = network(weights, plane, np.zeros(len(plane), int))[1].argmax(axis=1).reshape(200, 200)
right.contourf(side, side, answer, levels=[-0.5, 0.5, 1.5, 2.5], colors=["#cfe3f1", "#f8dcc8", "#cdebe1"])
for i in range(3):
    right.plot(*points[arm == i].T, "o", markersize=3)
right.set(xlabel="first coordinate", ylabel="second coordinate", aspect="equal", title="the network's answer")
right.grid(False)

# %% [markdown]
# ## Checking a gradient as the library does
#
# `differences` calls the function twice for every element. For a million elements that is too slow. There is a trick:
# move *all* elements at once, along a random direction $u$. The loss then changes by the sum of all changes,
# $\sum_j \frac{dL}{dx_j} u_j$, so two calls check the whole gradient. A single wrong element makes the two numbers
# differ, unless the direction happens to be 0 there, and with random numbers that practically never occurs.

# %%
direction = [rng.normal(size=weight.shape) for weight in start]
forward, back = ([w + h * d for w, d in zip(start, direction)] for h in (1e-6, -1e-6))
rise = (network(forward, points, arm)[0] - network(back, points, arm)[0]) / 2e-6
slope = sum((gradient * d).sum() for gradient, d in zip(network(start, points, arm)[2], direction))
same(slope, rise, f"the slope along one direction of {sum(w.size for w in start)} weights", 1e-7)

# %% [markdown]
# `tg.gradcheck` does this for any function of tensors, and checks rules besides: shapes, that nothing is overwritten,
# that a second run is equal. It accepts numbers of 64 bits only. Models compute with 32 bits, which are 7 digits, and
# the difference of two such numbers after a tiny step has hardly a right digit. Check in 64 bits, then train in 32.
#
# To use it on *our* layer norm, we make it an operation of the library. `@op` records what a function over arrays
# returns: its result and its backward, as for `tg.exp` in chapter 00. The first argument, `k`, gives access to the
# library's kernels; we do not need it.

# %%
@tg.autograd.op
def our_layer_norm(k, x, w, b):
    y, saved = layer_norm(x, w, b)
    return y, lambda dy: layer_norm_backward(dy, w, saved)


@tg.autograd.op
def our_gelu(k, x):
    y, slope = gelu(x)
    return y, lambda dy: dy * slope


def tensor(*shape):
    return tg.Tensor(rng.normal(size=shape), requires_grad=True)


print("our layer norm:", tg.gradcheck(our_layer_norm, tensor(4, 6), tensor(6), tensor(6)))
print("our GELU:      ", tg.gradcheck(our_gelu, tensor(4, 6)))

# %% [markdown]
# In this way the library checks all of its own operations, over many hundreds of examples. `python -m tensorgrad
# gradcheck` prints the table, and `--op layer_norm` restricts it to one operation.
#
# ## Watching the tape
#
# The tape of the library can be watched by an **observer**: an object that is told of every operation and every
# gradient within a `with` block. The library uses observers to find the first operation that gave a nan ("not a
# number", as 0 / 0), to count the work, and to exchange gradients between processes. Ours prints what happens:

# %%
class Watch(tg.autograd.Observer):
    def after_op(self, name, operands, output, op, options):
        print(f"forward   {name:<14} gives {output.shape}")

    def arrived(self, node, dys):
        print(f"backward  {node.name:<14} gets dy {dys[0].shape}")


w1, b1, scale, shift, w2, b2 = (tg.Tensor(weight, requires_grad=True) for weight in start)
with Watch():
    h = tg.layer_norm(points @ w1 + b1, scale, shift)
    z = tg.gelu(h, approximate="tanh") @ w2 + b2
    loss = tg.cross_entropy(z, arm)
    loss.backward()

# %% [markdown]
# The tape visits the operations in reverse, in the order that we wrote by hand in `network`.
#
# ## The library's code
#
# Broadcasting first. It is our `sum_to`, with all axes summed in one call:

# %%
show(tg.ops.broadcasting.unbroadcast)

# %% [markdown]
# `matmul` has the two products of our derivation in `da` and `db`. The rest gives a vector the axis that it lacks,
# and turns the gradient of a shared matrix into one large product in place of many small ones and a sum.

# %%
show(tg.matmul)

# %% [markdown]
# The operation `softmax` only connects a forward and a backward. The mathematics is in the *kernels*, and each kernel
# exists once in plain array code, in [`tensorgrad/backend/math.py`](../tensorgrad/backend/math.py). Faster kernels
# for particular processors are compared with these. `wide` and `narrow` do nothing here: they are for numbers of 16
# bits.

# %%
Math = tg.backend.math.Math
show(tg.softmax, Math.softmax_backward, Math.cross_entropy_backward)

# %% [markdown]
# In `cross_entropy_backward` you see `p - y`: first `exp(logits - lse)`, which is $e^{z_j - \log S} = p_j$, then 1 is
# subtracted at the target's place, both times the row's `dlosses`. (`lse` holds $\log S$ as two numbers, the largest
# logit and the rest. `label_smoothing` and `ignore_index` are options that are off here.) In
# `layer_norm`, `ctx` only permits the library to compute the result a second time where memory is short. The `dx` of
# layer norm is the result of our derivation, with $r$ called `rstd` (one over the standard deviation). `dsum` is the
# gradient of a second path that may join here, as in a block of a GPT (chapter 04b).

# %%
show(tg.nn.LayerNorm, tg.layer_norm, Math.layer_norm, Math.layer_norm_backward_x, Math.layer_norm_backward_weight)

# %%
show(Math.gelu_backward, Math.gelu_tanh_backward)

# %% [markdown]
# ## The same numbers
#
# The library's tape has just computed the gradients of the network of the spiral. They are those of our own backward:

# %%
loss_by_hand, _, gradients = network(start, points, arm)
same(loss, loss_by_hand, "the loss of the network")
names = ["w1", "b1", "scale", "shift", "w2", "b2"]
for name, weight, gradient in zip(names, (w1, b1, scale, shift, w2, b2), gradients):
    same(weight.grad, gradient, f"the gradient of {name}")

# %% [markdown]
# Layer norm needs a closer look. On ordinary rows the variance is near 1, and another $\epsilon$ would hardly show.
# So we compare on rows whose numbers are nearly equal, where $\epsilon$ matters as much as the variance. We do it for
# both backends of a CPU: `numpy` with plain array code, and `numba` with compiled kernels.

# %%
x, dy = 3 + 0.003 * rng.normal(size=(50, 16)), rng.normal(size=(50, 16))
print(f"variance of the first row {x[0].var():.1e}, eps 1e-05")
w, b = np.ones(16), np.zeros(16)
y, saved = layer_norm(x, w, b, eps=1e-5)
for backend in ("numpy", "numba"):
    with tg.use_backend(backend):
        x_t = tg.Tensor(x, requires_grad=True)
        y_t = tg.nn.LayerNorm(16)(x_t)
        y_t.backward(dy)
        same(y_t, y, f"nn.LayerNorm with its own eps, {backend}", 1e-10)
        same(x_t.grad, layer_norm_backward(dy, w, saved)[0], f"its gradient, {backend}", 1e-10)
        same(tg.layer_norm(tg.Tensor(x), w, b), y, f"layer_norm with its own eps, {backend}", 1e-10)

# %% [markdown]
# Then both forms of GELU, on an array large enough to be divided among threads. Both backends compute GPT-2's form in
# fewer passes over memory than the formula that was shown above, so we also call the plain kernels that were shown,
# with NumPy as their array module `xp`:

# %%
x, dy = rng.normal(scale=2, size=100_000), rng.normal(size=100_000)
for backend in ("numpy", "numba"):
    for form, function in (("tanh", gelu), ("none", gelu_exact)):
        with tg.use_backend(backend):
            x_t = tg.Tensor(x, requires_grad=True)
            y_t = tg.gelu(x_t, approximate=form)
            y_t.backward(dy)
        y, slope = function(x)
        same(y_t, y, f"GELU, approximate={form!r}, {backend}")
        same(x_t.grad, dy * slope, f"its gradient, approximate={form!r}, {backend}")


class Plain(Math):
    xp = np


same(Plain().gelu_tanh_backward(dy, x), dy * gelu(x)[1], "gelu_tanh_backward")
rows, drows = x.reshape(-1, 16), dy.reshape(-1, 16)
xhat, r = layer_norm(rows, w, b)[1]
mean = rows.mean(axis=-1, keepdims=True)
dx = Plain().layer_norm_backward_x(drows, rows, w, mean, r)
same(dx, layer_norm_backward(drows, w, (xhat, r))[0], "layer_norm_backward_x")

# %% [markdown]
# ## Mistakes that people make
#
# **Forgetting to sum over the rows.** The gradient of a bias then has the shape of the result. With
# `bias -= rate * dbias`, NumPy raises an error. With `bias = bias - rate * dbias` it does not: the bias *becomes* a
# matrix, with a bias of its own for each point of the batch. Nothing fails until a batch has another size.

# %%
bias, dh = np.zeros(width), rng.normal(size=(300, width))
bias = bias - 0.5 * dh
print("the bias has the shape", bias.shape, "now, and x @ w1 + bias still works:", (points @ start[0] + bias).shape)

# %% [markdown]
# **Softmax without subtracting the maximum.** $e^{1000}$ is larger than the largest number that a computer can hold:

# %%
z = np.array([1000.0, 999.0, 0.0])
with np.errstate(all="ignore"):
    print("naive: ", np.exp(z) / np.exp(z).sum())
print("stable:", softmax(z).round(4))

# %% [markdown]
# **Treating mean and variance as constants.** Then $dx = r\, g$, the first term only. The forward is right, the
# shapes are right, and the network of the spiral even learns. Its loss is a little higher, which nobody would notice
# without the right one beside it. A gradient check finds the mistake at once:

# %%
def careless_backward(dy, w, saved):
    xhat, r = saved
    return dy * w * r, sum_to(dy * xhat, w.shape), sum_to(dy, w.shape)


correct_backward, layer_norm_backward = layer_norm_backward, careless_backward  # what `network` calls
careless_losses = train(start)[1]
layer_norm_backward = correct_backward
print(f"loss after 1500 steps: {careless_losses[-1]:.4f} with the mistake, {losses[-1]:.4f} without")


@tg.autograd.op
def careless_layer_norm(k, x, w, b):
    y, saved = layer_norm(x, w, b)
    return y, lambda dy: careless_backward(dy, w, saved)


try:
    tg.gradcheck(careless_layer_norm, tensor(4, 6), tensor(6), tensor(6))
except AssertionError as error:
    print(error)

# %% [markdown]
# ## Exercises
#
# The tests are in [`exercises/tensors.py`](exercises/tensors.py), answers in
# [`solutions/tensors.py`](solutions/tensors.py).
#
# **1.** The linear layer $y = x W^T + b$, with $x$ of shape (rows, n), $W$ of shape (m, n) and $b$ of shape (m,).
# Return $dx$, $dW$ and $db$. (Hint: use the shapes.)

# %%
def linear_backward(dy, x, weight):
    """Return (dx, dweight, dbias) for y = x @ weight.T + bias."""
    ...


exercise(linear_backward, tests.linear_backward)

# %% [markdown]
# **2.** Log-softmax: $y_i = z_i - \log S$, for each row. Write its backward *from its result* $y$. (Hint: what is
# $e^y$?)

# %%
def log_softmax_backward(dy, y):
    """Return dz for y = log(softmax(z)) along the last axis; y and dy have the shape (rows, n)."""
    ...


exercise(log_softmax_backward, tests.log_softmax_backward)

# %% [markdown]
# **3.** Newer models use RMS norm, which does not subtract a mean: $y_j = x_j\, r$ with
# $r = 1 / \sqrt{\frac1n \sum_k x_k^2 + \epsilon}$. Derive $dx$ (steps 2 to 4 above) and write it, for rows.

# %%
def rms_norm_backward(dy, x, eps):
    """Return dx for y = x / sqrt(mean(x²) + eps) along the last axis; x and dy have the shape (rows, n)."""
    ...


exercise(rms_norm_backward, tests.rms_norm_backward)

# %% [markdown]
# ## What you can use now
#
# `tg.matmul`, `tg.softmax`, `tg.cross_entropy`, `tg.layer_norm`, `tg.nn.LayerNorm`, `tg.gelu`, `tg.gradcheck`,
# `tg.autograd.op`, `tg.autograd.Observer`, `tg.ops.broadcasting.unbroadcast`, `tg.backend.math.Math` (every kernel in
# plain array code) and `tg.use_backend`.
#
# ## Sources
#
# - Jimmy Lei Ba, Jamie Ryan Kiros and Geoffrey Hinton, [Layer Normalization](https://arxiv.org/abs/1607.06450), 2016.
# - Dan Hendrycks and Kevin Gimpel, [Gaussian Error Linear Units](https://arxiv.org/abs/1606.08415), 2016: both forms
#   of GELU.
# - Terence Parr and Jeremy Howard, [The Matrix Calculus You Need For Deep
#   Learning](https://arxiv.org/abs/1802.01528), 2018: more on derivatives with indices.
# - The spiral is an old test; we met it in the notes of Stanford's course [CS231n](https://cs231n.github.io/).
#
# Next: [01 Tokens](01_tokens.ipynb), where text becomes numbers.
