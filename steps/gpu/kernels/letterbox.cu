// pipeline.letterbox.letterbox of every picture of a batch, upright by its EXIF orientation: pixel areas are averaged
// where the picture shrinks, and it is sampled bilinearly where it grows.

#define PAD_VALUE 114

__device__ inline void add_pixel(const Image& image, int y, int x, float weight, float sum[3]) {
  if (image.flip_y) y = image.height - 1 - y;
  if (image.flip_x) x = image.width - 1 - x;
  const int row = image.transposed ? x : y, column = image.transposed ? y : x;
  const unsigned char* pixel = (const unsigned char*)image.pixels + (size_t)row * image.pitch + 3 * column;
  for (int channel = 0; channel < 3; ++channel) sum[channel] += weight * pixel[channel];
}

// Of `size` pixels of one axis those that lie under an output pixel, which is `factor` pixels wide around `center`.
struct Window {
  int first, last;
  float begin, end;

  __device__ Window(float center, float factor, int size) {
    const float half = fmaxf(factor, 1.0f) * 0.5f;
    begin = fmaxf(center - half, 0.0f);
    end = fminf(center + half, (float)size);
    first = min((int)begin, size - 1);
    last = max(min((int)ceilf(end), size) - 1, first);
  }

  // Two neighbors weighted by their share of a window one pixel wide are bilinear sampling; at the picture's border
  // the window is cut, as OpenCV repeats the border's pixel.
  __device__ float weight(int pixel) const { return fminf(end, pixel + 1.0f) - fmaxf(begin, (float)pixel); }
};

extern "C" __global__ void letterbox(const Image* images, unsigned char* out, int out_height, int out_width) {
  const Image& image = images[blockIdx.z];
  const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
  if (!image.pixels || x >= out_width || y >= out_height) return;
  float sum[3] = {PAD_VALUE, PAD_VALUE, PAD_VALUE}, weights = 1.0f;
  const int inside_x = x - image.left, inside_y = y - image.top;
  if (inside_x >= 0 && inside_x < image.resized_width && inside_y >= 0 && inside_y < image.resized_height) {
    const float factor_x = (float)image.width / image.resized_width, factor_y = (float)image.height / image.resized_height;
    const Window across((inside_x + 0.5f) * factor_x, factor_x, image.width);
    const Window down((inside_y + 0.5f) * factor_y, factor_y, image.height);
    sum[0] = sum[1] = sum[2] = weights = 0.0f;
    for (int row = down.first; row <= down.last; ++row)
      for (int column = across.first; column <= across.last; ++column) {
        const float weight = down.weight(row) * across.weight(column);
        weights += weight;
        add_pixel(image, row, column, weight, sum);
      }
  }
  unsigned char* pixel = out + (((size_t)blockIdx.z * out_height + y) * out_width + x) * 3;
  for (int channel = 0; channel < 3; ++channel) pixel[channel] = (unsigned char)(sum[channel] / weights + 0.5f);
}
