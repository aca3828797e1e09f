"""Pictures of an episode: who serves which token, over which links, and which device everybody waits for.

``record`` keeps what happened, ``scene`` says it in numbers and words, and ``picture``, ``terminal`` and ``window``
show a scene. Pillow and pygame, of the extra ``render``, are imported where something is drawn.
"""

from wdmoe_env.rendering.canvas import Picture
from wdmoe_env.rendering.renderer import BATCH_RENDER_MODES, RENDER_FPS, RENDER_MODES, Renderer

__all__ = ["BATCH_RENDER_MODES", "RENDER_FPS", "RENDER_MODES", "Picture", "Renderer"]
