//! Pictures: PyTorch-equal augmentation and CLIP's evaluation transform.
