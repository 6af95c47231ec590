// What the host and the kernels share. steps/gpu/structs.py holds the same fields, in the same order.

struct Image {
  unsigned long long pixels;  // device address of the decoded picture, 8-bit RGB, as stored; 0: its slot is filled already
  double step_x, step_y;      // prototype cells per pixel of the upright image
  double pad_x, pad_y;        // border left of and above the image, in prototype cells
  int pitch;                  // bytes from row to row of the decoded picture
  int transposed, flip_x, flip_y;  // from stored to upright (EXIF), as pipeline.images._orient: transpose, then flip
  int height, width;          // of the upright image
  int top, left;              // of the image in the network's input
  int resized_height, resized_width;
  float scale_x, scale_y;     // network pixels per pixel of the upright image
  float confidence, iou;
  int max_detections;
  int first_class, classes;   // the wanted classes in the list of the batch; classes < 0: all are wanted
  int masks;                  // 0: none, 1: edges, 2: edges and COCO's bytes
};

struct Found {  // of one image
  int first, count;  // its instances
  float last_score;  // of the last candidate that left the network
  int unused;
};

struct Span {  // pixels of one axis inside a box, see pipeline.masks._Spans
  double offset;
  int first, count, low, high;
};

struct Instance {
  Span x, y;
  float box[4];  // x1, y1, x2, y2 in pixels of the upright image
  float score;
  int class_id;
  int image, row;  // its candidate
  int first_edge, edges;  // edges: -1 where the pool was full
  int first_byte, bytes;
};

struct Totals {
  int instances, edges, bytes, unused;
};

#define THREADS 256
#define STRIDE 4.0f  // network pixels per prototype cell, STRIDE in steps/gpu/preprocess.py

__device__ inline float to_image(float value, int pad, float scale, int size) {  // pipeline.letterbox.Geometry.to_image
  return fminf(fmaxf((value - pad) / scale, 0.0f), (float)size);
}

__device__ inline Span span_of(double begin, double end, int size, double step, double pad, int cells) {
  Span span;
  const double first = fmin(fmax(ceil(begin - 0.5), 0.0), size - 1.0);
  const double last = fmin(fmax(ceil(end - 0.5), first + 1.0), (double)size) - 1.0;
  const double start = (first + 0.5) * step + pad - 0.5, stop = (last + 0.5) * step + pad - 0.5;
  const double low = fmin(fmax(floor(start), 0.0), cells - 1.0);
  span.offset = start - low;
  span.first = (int)first;
  span.count = (int)(last - first + 1.0);
  span.low = (int)low;
  span.high = (int)fmin(fmax(floor(stop) + 2.0, low + 1.0), (double)cells);
  return span;
}

// Exclusive sum over the block's THREADS threads, and the total.
__device__ inline int block_sum(int value, int* total) {
  __shared__ int warps[THREADS / 32];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int sum = value;
  for (int offset = 1; offset < 32; offset <<= 1) {
    const int below = __shfl_up_sync(0xffffffffu, sum, offset);
    if (lane >= offset) sum += below;
  }
  __syncthreads();  // the last call's sums have been read
  if (lane == 31) warps[warp] = sum;
  __syncthreads();
  int before = 0;
  *total = 0;
  for (int other = 0; other < THREADS / 32; ++other) {
    if (other < warp) before += warps[other];
    *total += warps[other];
  }
  return before + sum - value;
}

__device__ inline float widen(unsigned short half) {
#ifdef __CUDACC__
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
  return value;
#else
  return widen_on_host(half);
#endif
}
