"""Leave Matplotlib only the fonts that it brings along, for all processes that share its cache.

Run it with MPLCONFIGDIR set to a fresh folder. Then Chinese figures show whether the packaged font
is enough.
"""

from pathlib import Path

import matplotlib
from matplotlib import font_manager

fonts = font_manager.fontManager
own = matplotlib.get_data_path()
fonts.ttflist = [font for font in fonts.ttflist if Path(font.fname).is_relative_to(own)]
fonts.afmlist = []
cache = Path(matplotlib.get_cachedir()) / f"fontlist-v{fonts.__version__}.json"
if not cache.exists():
    raise SystemExit(f"{cache} is not where Matplotlib keeps its list of fonts")
font_manager.json_dump(fonts, cache)
