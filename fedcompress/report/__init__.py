"""Pictures of runs. The only importer of matplotlib."""

from fedcompress.report.plot import plot_accuracy_against_bytes

__all__ = ["plot_accuracy_against_bytes"]
