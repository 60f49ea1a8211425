"""What the node calls of ComfyUI, written anew: models, guiders, samplers and their wrappers.

`make comfyui` runs the node in ComfyUI itself.
"""

import itertools
from types import SimpleNamespace

import torch

from fastrepulse.noise import initial_noise


class Exploding:
    """Adds noise as ComfyUI's EPS and V_PREDICTION do."""

    sigma_max = 14.6

    def noise_scaling(self, sigma, noise, latent_image):
        return noise * sigma + latent_image

    def inverse_noise_scaling(self, sigma, latent):
        return latent


class Flow:
    """Adds noise as ComfyUI's CONST does."""

    sigma_max = 1.0

    def noise_scaling(self, sigma, noise, latent_image):
        return sigma * noise + (1 - sigma) * latent_image

    def inverse_noise_scaling(self, sigma, latent):
        return latent / (1 - sigma)


class Patcher:
    """A MODEL: what nodes have added to it."""

    def __init__(self, functions=(), wrappers=()):
        self.functions, self.wrappers = list(functions), dict(wrappers)

    def clone(self):
        return Patcher(self.functions, self.wrappers)

    def set_model_sampler_post_cfg_function(self, function):
        self.functions.append(function)

    def add_wrapper_with_key(self, kind, key, wrapper):
        self.wrappers[kind, key] = [*self.get_wrappers(kind, key), wrapper]

    def get_wrappers(self, kind, key):
        return self.wrappers.get((kind, key), [])

    def call(self, kind, function, owner, *args):
        """Calls a function inside the wrappers of a kind."""

        class Executor:
            class_obj = owner

            def __call__(self, *args):
                return function(*args)

        for wrapper in self.get_wrappers(kind, "fastrepulse"):
            return wrapper(Executor(), *args)
        return function(*args)


class Guider:
    """Guides a model from (x, sigma, whether the prompt is given) to clean latents."""

    def __init__(self, patcher, model, sampling, cfg=1.0):
        self.patcher, self.model, self.cfg = patcher, model, cfg
        self.inner_model = SimpleNamespace(model_sampling=sampling)

    def __call__(self, x, sigma, model_options, seed=None):
        sigma = sigma.expand(len(x))
        function = self.predict_noise
        return self.patcher.call("predict_noise", function, self, x, sigma, model_options, seed)

    def predict_noise(self, x, sigma, options, seed=None):
        given = self.model(x, sigma[0], True)
        negative = torch.zeros_like(given)
        if self.cfg != 1 or options.get("disable_cfg1_optimization"):
            negative = self.model(x, sigma[0], False)
        denoised = negative + self.cfg * (given - negative)
        for function in options["sampler_post_cfg_function"]:
            args = {"denoised": denoised, "uncond_denoised": negative, "sigma": sigma, "input": x}
            denoised = function({**args, "model": self.inner_model, "model_options": options})
        return denoised

    def sample(self, function, noise, sigmas, latent_image=None, seed=0, callback=None):
        """Runs a sampler's function (model, x, sigmas, extra_args, callback)."""
        sampler = SimpleNamespace(sampler_function=function)

        def sample(guider, sigmas, extra_args, callback, noise, latent_image, mask, pbar):
            sampling = guider.inner_model.model_sampling
            x = sampling.noise_scaling(sigmas[0], noise, latent_image)
            x = function(guider, x, sigmas, extra_args, callback or (lambda *_: None))
            return sampling.inverse_noise_scaling(sigmas[-1], x)

        options = {"sampler_post_cfg_function": list(self.patcher.functions)}
        options["transformer_options"] = {"sample_sigmas": sigmas}
        extra_args = {"model_options": options, "seed": seed}
        image = torch.zeros_like(noise) if latent_image is None else latent_image
        args = (self, sigmas, extra_args, callback, noise, image, None, True)
        with torch.inference_mode():
            return self.patcher.call("sampler_sample", sample, sampler, *args)


def euler(model, x, sigmas, extra_args, callback):
    """k-diffusion's Euler sampler."""
    for step, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
        denoised = model(x, sigma, **extra_args)
        callback(step, denoised, x, len(sigmas) - 1)
        x = x + (following - sigma) * (x - denoised) / sigma
    return x


def euler_cfg_pp(model, x, sigmas, extra_args, callback):
    """CFG++: goes from the clean latents towards the noise in the negative prediction."""
    seen = []

    def keep(args):
        seen.append(args["uncond_denoised"])
        return args["denoised"]

    options = extra_args["model_options"]
    functions = [*options["sampler_post_cfg_function"], keep]
    extra_args["model_options"] = {
        **options,
        "sampler_post_cfg_function": functions,
        "disable_cfg1_optimization": True,
    }
    for sigma, following in itertools.pairwise(sigmas):
        denoised = model(x, sigma, **extra_args)
        x = denoised + following * (x - seen[-1]) / sigma
    return x


def with_rounding(model, x, sigmas, extra_args, callback):
    """Euler's steps, asking at noise levels that went through a logarithm."""
    for sigma, following in itertools.pairwise(sigmas):
        denoised = model(x, sigma * (1 + 3e-7), **extra_args)
        x = x + (following - sigma) * (x - denoised) / sigma
    return x


def overwriting(model, x, sigmas, extra_args, callback):
    """Euler's steps after the last noise level was overwritten in place, as UniPC does."""
    last = float(sigmas[-1])
    sigmas[-1] = max(last, 0.001)
    return euler(
        model, x, torch.cat([sigmas[:-1], sigmas.new_tensor([last])]), extra_args, callback
    )


def shrinking(x, sigma, given):
    """A model of some other images: what is clean is a part of what is noisy."""
    return (0.3 if given else 0.2) * x / (1 + sigma**2) ** 0.5


def run(
    patcher, sigmas, function=euler, sampling=None, shape=(4, 4, 16, 16), model=shrinking, **how
):
    guider = Guider(patcher, model, sampling or Exploding(), how.pop("cfg", 1.0))
    return guider.sample(
        function, initial_noise(0, shape[0], shape[1:]), torch.tensor(sigmas), **how
    )


def repelling(node, strength=1.0, embedding="thirds", window=(0, 0), **how):
    return node.patch(Patcher(), strength, embedding, *window, 0, **how)[0]
