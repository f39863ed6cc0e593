"""Pages and figures on datasets, runs and detections, imported at their first use."""

import importlib

_PUBLIC = {
    "WebPage": "vfnet_tf.reports.web_page",
    "compare_histories": "vfnet_tf.reports.curves",
    "history_figures": "vfnet_tf.reports.curves",
    "plot_history": "vfnet_tf.reports.curves",
    "compare_runs": "vfnet_tf.reports.comparison",
    "scan_page": "vfnet_tf.reports.scan",
    "write_comparison": "vfnet_tf.reports.comparison",
    "write_report": "vfnet_tf.reports.evaluation",
}

__all__ = [*_PUBLIC]


def __getattr__(name):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'vfnet_tf.reports' has no attribute {name!r}")
