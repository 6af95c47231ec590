// pipeline.decode.decode_candidates of every image of a batch: threshold, class filter, greedy suppression per class,
// boxes in pixels of the image; and the pixels and prototype cells of each box (pipeline.masks._Spans).
// One block an image. Compiled without fused multiply-add, so that every comparison falls as NumPy's does.

#define MOST_KEPT 1000  // pipeline.contract.DEFAULT_TOP_K, the largest max_detections

// Columns of a candidate, as in pipeline.contract.
#define SCORE 0
#define CENTER_X 1
#define CENTER_Y 2
#define WIDTH 3
#define HEIGHT 4
#define CLASS 5

__device__ inline bool is_wanted(const Image& image, const int* classes, float class_id) {
  if (image.classes < 0) return true;
  for (int index = 0; index < image.classes; ++index)
    if (classes[image.first_class + index] == class_id) return true;
  return false;
}

__device__ inline float overlap(const float4& one, const float4& other) {  // pipeline.nms.box_iou
  const float width = fminf(one.z, other.z) - fmaxf(one.x, other.x);
  const float height = fminf(one.w, other.w) - fmaxf(one.y, other.y);
  const float both = fmaxf(width, 0.0f) * fmaxf(height, 0.0f);
  const float area = (one.z - one.x) * (one.w - one.y) + (other.z - other.x) * (other.w - other.y) - both;
  return area > 0.0f ? both / area : 0.0f;
}

__device__ inline float4 in_image(const Image& image, const float4& box) {
  return make_float4(to_image(box.x, image.left, image.scale_x, image.width),
                     to_image(box.y, image.top, image.scale_y, image.height),
                     to_image(box.z, image.left, image.scale_x, image.width),
                     to_image(box.w, image.top, image.scale_y, image.height));
}

// candidates: [images, count, columns]; corners: scratch, [images, count]; shared memory: `count` bytes.
extern "C" __global__ void suppress(const Image* images, const int* classes, const float* candidates, int count,
                                    int columns, int cells_high, int cells_wide, float4* corners, Found* found,
                                    Instance* instances, Totals* totals) {
  extern __shared__ unsigned char alive[];
  __shared__ int kept[MOST_KEPT];
  __shared__ int above, kept_count, first;
  const Image& image = images[blockIdx.x];
  const float* rows = candidates + (size_t)blockIdx.x * count * columns;
  float4* boxes = corners + (size_t)blockIdx.x * count;
  const int thread = threadIdx.x;
  if (thread == 0) above = kept_count = 0;
  __syncthreads();
  int mine = 0;
  for (int row = thread; row < count; row += THREADS) mine += rows[(size_t)row * columns + SCORE] >= image.confidence;
  if (mine) atomicAdd(&above, mine);
  __syncthreads();
  for (int row = thread; row < above; row += THREADS) {
    const float* one = rows + (size_t)row * columns;
    const float half_width = one[WIDTH] / 2.0f, half_height = one[HEIGHT] / 2.0f;
    boxes[row] = make_float4(one[CENTER_X] - half_width, one[CENTER_Y] - half_height, one[CENTER_X] + half_width,
                             one[CENTER_Y] + half_height);
    const float4 inside = in_image(image, boxes[row]);
    alive[row] = inside.z > inside.x && inside.w > inside.y && is_wanted(image, classes, one[CLASS]);
  }
  __syncthreads();
  for (int best = 0; best < above; ++best) {  // all threads take the same way
    if (!alive[best]) continue;
    if (kept_count == image.max_detections) break;
    const float4 box = boxes[best];
    const float class_id = rows[(size_t)best * columns + CLASS];
    for (int row = best + 1 + thread; row < above; row += THREADS)
      if (alive[row] && rows[(size_t)row * columns + CLASS] == class_id && overlap(box, boxes[row]) > image.iou)
        alive[row] = 0;
    __syncthreads();
    if (thread == 0) kept[kept_count++] = best;
    __syncthreads();
  }
  __syncthreads();
  if (thread == 0) {
    first = atomicAdd(&totals->instances, kept_count);
    found[blockIdx.x].first = first;
    found[blockIdx.x].count = kept_count;
    found[blockIdx.x].last_score = count ? rows[(size_t)(count - 1) * columns + SCORE] : 0.0f;
  }
  __syncthreads();
  for (int place = thread; place < kept_count; place += THREADS) {
    const int row = kept[place];
    const float4 box = in_image(image, boxes[row]);
    Instance& instance = instances[first + place];
    instance.image = blockIdx.x;
    instance.row = row;
    instance.score = rows[(size_t)row * columns + SCORE];
    instance.class_id = (int)rows[(size_t)row * columns + CLASS];
    instance.box[0] = box.x;
    instance.box[1] = box.y;
    instance.box[2] = box.z;
    instance.box[3] = box.w;
    instance.x = span_of(box.x, box.z, image.width, image.step_x, image.pad_x, cells_wide);
    instance.y = span_of(box.y, box.w, image.height, image.step_y, image.pad_y, cells_high);
    instance.first_edge = instance.edges = instance.first_byte = instance.bytes = 0;
  }
}
