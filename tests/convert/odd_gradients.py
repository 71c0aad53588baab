"""What code does with gradients: frozen parts, parts without gradients, several backward passes, hooks, Functions of its own."""

import torch
import torch.nn.functional as F

from tests.convert.parts import Double, DoubleInPlace, Scenes, backward

scene = Scenes()


@scene("frozen parameters here and there")
def frozen(m, x):
    for p in (m.conv1.weight, m.bn2.weight, m.bn3.bias):
        p.requires_grad_(False)
    return backward(m(x))


@scene("only the last layer is trained")
def frozen_but_for_the_last(m, x):
    m.requires_grad_(False).conv3.requires_grad_(True)
    return backward(m(x.detach()))


@scene("nothing but the image wants a gradient")
def only_x(m, x):
    return torch.autograd.grad(m.requires_grad_(False)(x).square().sum(), x)


@scene("nothing wants a gradient")
def nothing(m, x):
    y = m.requires_grad_(False)(x.detach())
    return y, y.requires_grad


@scene("frozen while it is called, not while the result is used (GANs)")
def frozen_for_the_call(m, x):
    m.requires_grad_(False)
    y = m.layer(1, m.stem(x))
    m.requires_grad_(True)
    return backward(y)


@scene("a part without gradients, in a network with them")
def no_grad_part(m, x):
    h = m.stem(x)
    with torch.no_grad():
        y = m.layer(1, h)
        s = m.layer(2, h) + h
    y += h
    return backward(m.layer(3, h) + y * s)


@scene("a norm without gradients, a convolution with them: a frozen backbone")
def no_grad_norm(m, x):
    with torch.no_grad():
        z = m.bn1(m.stem(x))
    return backward(m.conv1(F.relu(z)))


@scene("an activation with gradients, a convolution without")
def no_grad_convolution(m, x):
    z = F.relu(m.bn1(m.stem(x)))
    with torch.no_grad():
        y = m.conv1(z)
    return backward(m.conv2(z) + y)


@scene("looked at without gradients, then used with them")
def looked_at(m, x):
    h, looks = m.stem(x), []
    a = m.layer(1, h)
    s = m.layer(2, a) + h
    with torch.no_grad():
        looks += [a.mean(), s.mean()]
    return backward(m.layer(3, s) + a), *looks


@scene("changed in place under no_grad, which autograd does not see")
def changed_under_no_grad(m, x):
    z = m.bn1(m.stem(x))
    with torch.no_grad():
        F.relu_(z)
    return backward(m.conv1(z))


@scene("two backward passes through one graph")
def retain_graph(m, x):
    loss = m(x).square().sum()
    loss.backward(retain_graph=True)
    loss.backward()
    return loss


@scene("gradients of two results, one inside the other's graph")
def two_losses(m, x):
    a = m.layer(1, m.stem(x))
    b = m.layer(2, a)
    a.sum().backward(retain_graph=True)
    backward(b)
    return a, b


@scene("gradients of several results at once")
def many_roots(m, x):
    h = m.stem(x)
    a = m.layer(1, h)
    s = m.layer(2, a) + h
    torch.autograd.backward([s, a, h], [torch.ones_like(s), a.detach(), h.detach()])


@scene("gradients with respect to some parameters only")
def some_parameters(m, x):
    return torch.autograd.grad(m(x).square().sum(), [m.bn2.weight, m.conv1.weight])


@scene("the gradient of an inner result that asked for it")
def retain_grad(m, x):
    h = m.stem(x)
    z = m.bn1(h)
    z.retain_grad()
    a = m.conv1(F.relu(z))
    a.retain_grad()
    y = backward(m.layer(2, a) + h)
    return y, z.grad, a.grad


@scene("a hook that changes a gradient, asked for before the result went on, or of a convolution after")
def tensor_hooks(m, x):
    h = m.stem(x)
    h.register_hook(lambda g: g * 3)
    z = F.relu(m.bn1(h))
    z.register_hook(lambda g: g * 2)
    a = m.conv1(z)
    b = m.layer(2, a)
    a.register_hook(lambda g: g * 5)
    return backward(b + h)


@scene("a hook, and then somebody's Function")
def hook_then_function(m, x):
    y = m.layer(1, m.stem(x))
    y.register_hook(lambda g: g * 2)
    return backward(Double.apply(y))


@scene("hooks of modules that return other tensors")
def module_hooks(m, x):
    m.bn1.register_forward_hook(lambda module, args, y: y * 2)
    m.conv1.register_forward_hook(lambda module, args, y: y.clamp(max=1))
    m.conv2.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    m.conv3.register_full_backward_hook(lambda module, dx, dy: (dx[0] * 2,))
    return backward(m(x))


@scene("somebody's Function of every kind of result")
def functions(m, x):
    h = m.stem(x)
    z = m.bn1(h)
    r = F.relu(z)
    y = m.conv1(r)
    s = y + h
    return backward(sum(Double.apply(t) for t in (z, r, y, s)) + m.layer(2, s))


@scene("a Function that changes its argument")
def function_in_place(m, x):
    y = DoubleInPlace.apply(m.layer(1, m.stem(x)))
    z = m.bn2(y)
    DoubleInPlace.apply(z)
    return backward(m.conv2(F.relu(z)))


@scene("in-place functions return their argument")
def returned_in_place(m, x):
    y = m.layer(1, m.stem(x))
    return y.mul_(2) is y, backward(y)


@scene("saved tensors on the CPU, of the whole and of parts")
def save_on_cpu(m, x):
    with torch.autograd.graph.save_on_cpu():
        h = m.unit(m.stem(x))
        z = m.bn3(h)
    y = m.conv3(F.relu(z))
    with torch.autograd.graph.save_on_cpu():
        y = m.layer(1, y)
    return backward(y + h)
