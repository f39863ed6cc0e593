"""VFNet-X: the rows "VFNet-X-800" and "VFNet-X-1200" of the paper's Table 4 (Sec. 5.3).

Res2Net-101-DCN, PAFPN and a head of four 384-channel convolutions. Published AP on
test-dev: 53.7 within 1333x800 (8.0 images per second on a V100), 55.1 within 1800x1200
(4.2), with soft-NMS. Official recipe: 41 epochs with random crops, cut-outs and images
within 750x500 to 2100x1400, then 18 epochs of weight averaging (SWA), 16 images per step.
Here: the 41 epochs, then `vfnet swa RUN_DIR --data DIR --epochs 18`. Short and long sides
are whole numbers drawn for each image, independently.
"""

from vfnet_tf.config import (
    BackboneConfig,
    Config,
    DataConfig,
    ModelConfig,
    TrainingConfig,
)

config = Config(
    name="vfnetx_r2_101_fpn_mdconv_c3-c5_mstrain_59e_coco",
    model=ModelConfig(
        backbone=BackboneConfig(
            name="res2net101_v1d_26w_4s", deformable=("C3", "C4", "C5")
        ),
        neck="pafpn",
        neck_filters=384,
        head_filters=384,
        head_convs=4,
        deformable_towers=True,
        nms_iou_threshold=0.65,
        nms="soft_linear",
    ),
    data=DataConfig(
        scale_range=((500, 750), (1400, 2100)),
        random_crop=0.5,
        cut_out=0.5,
        max_canvas_shapes=12,
    ),
    training=TrainingConfig(epochs=41, drop_epochs=(36, 40)),
)
