"""The main job: an unmodified nflows spline flow on real digits, plain and accelerated."""
