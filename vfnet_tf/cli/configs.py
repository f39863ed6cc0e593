"""`vfnet configs [NAME]`: what there is to train, or one config in full."""

import dataclasses

import tyro

from vfnet_tf.checkpoints.published import (
    OFFICIAL_TABLE,
    PATHS,
    WITHOUT_ADDRESS,
    preset_folder,
)


@dataclasses.dataclass(frozen=True)
class ConfigsOptions:
    """List the configs with their published AP, or print the model card of one."""

    name: tyro.conf.Positional[str | None] = None
    """a config's name, file or run directory for its model card; part of names or a
    pattern ('vfnet_r50*') for a list of those; all by default"""


OPTIONS = ConfigsOptions


def run(options):
    """Prints what `options` ask for; returns the exit status."""
    from vfnet_tf.config import config_files, list_configs
    from vfnet_tf.paper.model_cards import config_table, model_card

    name = options.name
    matching = list_configs(name)
    # A name that is part of others is still one config.
    if name is None or (matching and name not in config_files()):
        print(config_table(matching))
        print(_describe_weights(matching))
    else:
        print(model_card(name))
        if name in PATHS or name in WITHOUT_ADDRESS:
            print(f"\n{_describe_weights([name])}")
    return 0


def _describe_weights(names):
    """Which of the configs have published COCO weights, and which are in the cache."""
    lines = []
    for name in names:
        if name in PATHS:
            is_there = (preset_folder(name) / "source.json").is_file()
            place = "in the cache" if is_there else "downloaded when asked for"
            lines.append(f"  {name}: {place}")
        elif name in WITHOUT_ADDRESS:
            lines.append(f"  {name}: by hand, from {OFFICIAL_TABLE}")
    if not lines:
        return "No published COCO weights for these."
    return "\n".join(
        ["COCO weights, for --checkpoint NAME and --weights coco:", *lines]
    )
