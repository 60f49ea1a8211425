"""A local web page for exploring images in batches (`fastrepulse ui`, extra `ui`)."""

from fastrepulse.ui.proxies import no_proxy

# Gradio makes a client at import, which fails behind a SOCKS proxy
with no_proxy():
    from fastrepulse.ui.serve import launch

__all__ = ["launch"]
