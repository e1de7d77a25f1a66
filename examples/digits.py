"""A convolutional network reads scikit-learn's 8x8 digits: python examples/digits.py"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from lec7 import losses, optimizers
from lec7.layers import Conv2d, Dropout, Flatten, Linear, MaxPool2d, Sequential
from lec7.training import Trainer, minibatches

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
x, x_test, y, y_test = train_test_split(images, labels, test_size=0.25, random_state=0)

rng = np.random.default_rng(0)
conv1 = Conv2d(1, 16, 3, padding="same", activation="relu", rng=rng)
conv2 = Conv2d(16, 32, 3, padding="same", activation="relu", rng=rng)
model = Sequential(
    conv1, MaxPool2d(2), conv2, MaxPool2d(2), Flatten(), Dropout(0.2, rng=rng), Linear(128, 10, rng=rng)
)
trainer = Trainer(model, optimizers.Adam(), losses.softmax_cross_entropy, rng=rng, schedule=2e-3)
trainer.fit(lambda rng: minibatches(x, y, 32, rng), epochs=15)

accuracy = np.mean(model.forward(x_test)[0].argmax(axis=1) == y_test)
print(f"{accuracy:.1%} of {len(y_test)} test digits read right")
