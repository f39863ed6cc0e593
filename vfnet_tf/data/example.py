"""What an example and a batch hold: keys, shapes and dtypes.

An example is one image in its own pixels, as a reader yields it; a batch is what the
network gets. Shape letters: h, w the original image, R its boxes, B images, H, W the
padded canvas, M padded boxes.

| example key | dtype   | shape     | content                                       |
|-------------|---------|-----------|-----------------------------------------------|
| `image`     | uint8   | [h, w, 3] | RGB                                           |
| `boxes`     | float32 | [R, 4]    | `(x1, y1, x2, y2)`, pixels of this image      |
| `labels`    | int32   | [R]       | in [0, K)                                     |
| `image_id`  | int64   | []        | the id in the annotation file                 |

| batch key    | dtype   | shape        | content                                     |
|--------------|---------|--------------|---------------------------------------------|
| `images`     | float32 | [B, H, W, 3] | normalised, padded right and bottom with 0  |
| `boxes`      | float32 | [B, M, 4]    | pixels of the network input, padding rows 0 |
| `labels`     | int32   | [B, M]       | padding rows -1                             |
| `image_size` | float32 | [B, 2]       | (height, width) resized, before padding     |
| `scale`      | float32 | [B, 2]       | (y, x): resized size / original size        |
| `image_id`   | int64   | [B]          | -1 marks a repeat that fills a last batch   |

`boxes / [scale_x, scale_y, scale_x, scale_y]` gives pixels of the original image.
"""

PADDING_LABEL = -1
PADDING_IMAGE_ID = -1
