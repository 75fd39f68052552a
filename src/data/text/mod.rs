//! Captions: cleaning, augmentation (EDA) and tokens.
