"""What code does with values: views, changes in place, sums, modes, threads. Each scene has the reason why it is there."""

import copy
import threading

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.convert.parts import Scenes, backward

scene = Scenes()


@scene("a unit between two layers")
def plain(m, x):
    return backward(m(x))


@scene("a slice keeps looking at the result")
def views(m, x):
    z = m.bn1(m.stem(x))
    half, y = z[:, :4], m.conv1(F.relu(z))
    return backward(y + half.square().mean() + y.flatten(1)[:, :9].mean())


@scene("a view is changed, and with it the result")
def view_changed(m, x):
    y = m.layer(1, m.stem(x))
    y[:, :4].mul_(2)
    y[:, 5] = 0
    return backward(m.layer(2, y))


@scene("the view is of a norm's result")
def view_sees_relu_in_place(m, x):
    z = m.bn1(m.stem(x))
    half = z[:, :4]
    F.relu_(z)
    return half, backward(m.conv1(z))


@scene("results are changed in place")
def changed_in_place(m, x):
    z = m.bn1(m.stem(x)).clamp_(max=1)
    y = m.conv1(F.relu_(z))
    y.mul_(2)
    y += 1
    return backward(m.layer(2, y))


@scene("+= of a convolution, whose other name sees it")
def iadd(m, x):
    h = m.stem(x)
    y = other = m.layer(1, h)
    y += h
    return backward(other + m.layer(2, y))


@scene("+= to a copy of the shortcut")
def iadd_to_a_copy_of_x(m, x):
    h = m.stem(x)
    y, h = m.layer(1, h), h.clone()
    h += y
    return backward(m.layer(2, h) + h)


@scene("without gradients everything may be changed once it was read")
def changed_without_gradients(m, x):
    with torch.no_grad():
        h = m.stem(x)
        y = m.layer(1, h)
        h.zero_()
        m.conv1.weight.zero_()
        s = y + h
        h.add_(1)
        return y, s, m.layer(2, s)


@scene("inference_mode counts no changes")
def changed_in_inference_mode(m, x):
    with torch.inference_mode():
        h = m.stem(x)
        y = m.layer(1, h)
        h.zero_()
        return y.clone()


@scene("ReLU twice, the second result changed")
def relu_of_relu(m, x):
    with torch.no_grad():
        r = F.relu(m.bn1(m.stem(x)))
        F.relu(r).add_(1)
        return r, m.conv1(r)


@scene("the shortcut is changed after the sum")
def shortcut_changed(m, x):
    h = m.stem(x)
    shortcut = h.clone()
    y = m.layer(1, h) + shortcut
    shortcut.zero_()
    return backward(y)


@scene("shapes changed in place")
def unsqueezed_in_place(m, x):
    y = m.layer(1, m.stem(x))
    y.unsqueeze_(0)
    return backward(y.sum(0) * y.dim())


@scene("the shortcut was given another shape in place")
def shortcut_unsqueezed_in_place(m, x):
    h = m.stem(x)
    y = m.layer(1, h)
    y.unsqueeze_(0)
    return backward((m.layer(2, h) + y).sum(0))


@scene("detached at every stage")
def detached(m, x):
    h = m.stem(x)
    y = m.layer(1, h)
    s = m.layer(2, y.detach()) + h
    return backward(m.conv3(F.relu(m.bn3(s).detach())) + s + y)


@scene("results kept in a list, and all used, the last first")
def list_reversed(m, x):
    h, kept = m.stem(x), []
    for bn, conv in ((m.bn1, m.conv1), (m.bn2, m.conv2), (m.bn3, m.conv3)):
        kept += [bn(h), F.relu(bn(h))]
        h = conv(kept[-1])
        kept.append(h)
    sum(t.square().mean() for t in reversed(kept)).backward()
    return kept


@scene("one activation, three readers")
def three_readers(m, x):
    z = F.relu(m.bn1(m.stem(x)))
    return backward(m.conv1(z) * m.conv2(z) + m.proj(z) + z)


@scene("a convolution added to itself, to another, and the sum to its parts")
def sums_of_sums(m, x):
    z = F.relu(m.bn1(m.stem(x)))
    a, b = m.conv1(z), m.proj(z)
    s = a + b
    return backward(s + a + (a + a) + (s + s))


@scene("the inner result of a unit is used as well, after the unit")
def inner_result_after_the_unit(m, x):
    h = m.stem(x)
    a = m.layer(1, h)
    b = m.layer(2, a)
    y = (b + h).clone()
    return backward(y + a * 3 + b * 2)


@scene("addition of what is no shortcut: a scalar, a broadcast, a factor")
def other_additions(m, x):
    h = m.stem(x)
    y = m.layer(1, h)
    return backward((1 + y) * (m.layer(2, h) + h.mean((2, 3), keepdim=True)) - torch.add(h, m.layer(3, h), alpha=0.1))


@scene("float64 + float32")
def narrower_shortcut(m, x):
    h = m.stem(x)
    return backward(m.layer(1, h) + h.float())


@scene("one norm called twice, one convolution called twice")
def shared_modules(m, x):
    h = m.stem(x)
    for _ in range(3):
        h = m.layer(1, h) + h
    return backward(h)


@scene("norms called in one order, used in the other")
def crossed(m, x):
    h = m.stem(x)
    first, second = m.bn1(h), m.bn2(h)
    return backward(m.conv2(F.relu(second)) + m.conv1(F.relu(first)))


@scene("a result that nobody uses; its running statistics moved")
def unused(m, x):
    h = m.stem(x)
    m.layer(2, h)
    return backward(m.layer(1, h) + h)


@scene("eval and train in one pass, and between norm and convolution")
def modes(m, x):
    h = m.eval().stem(x)
    z = m.bn1(h)
    y = m.train().conv1(F.relu(z))
    m.bn3.eval()
    return backward(m.layer(3, m.layer(2, y)) + h)


@scene("an error in the middle, caught")
def caught_error(m, x):
    h = m.stem(x)
    y, message = m.layer(1, h), None
    try:
        m.stem(F.relu(m.bn2(y)))
    except RuntimeError as error:
        message = str(error)[:40]
    return backward(m.layer(2, y) + h), message


@scene("the network is copied between a layer and the next")
def copied_in_the_middle(m, x):
    y = m.layer(1, m.stem(x))
    other = copy.deepcopy(m)
    return backward(m.layer(2, y) + other.layer(2, y))


@scene("threads that call the model at once")
def threads(m, x):
    m.eval()
    results = [None] * 4

    def run(i: int) -> None:
        results[i] = m(x[i : i + 1])

    workers = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return backward(torch.cat(results))


@scene("backward in another thread")
def backward_elsewhere(m, x):
    loss = m(x).square().sum()
    worker = threading.Thread(target=loss.backward)
    worker.start()
    worker.join()
    return loss


@scene("somebody watches torch functions, or operators")
def watched(m, x):
    class Functions(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    z = m.bn1(m.stem(x))
    with Functions():
        y = m.layer(2, m.conv1(F.relu(z)))
    with Operators():
        y = m.layer(3, y)
    return backward(y)


@scene("what a result says of itself")
def metadata(m, x):
    h = m.stem(x)
    z = m.bn1(h)
    y = m.conv1(F.relu(z))
    return [(t.shape, t.stride(), t.dtype, t.requires_grad, t.is_leaf, len(t), t.dim()) for t in (z, y, y + h)]
