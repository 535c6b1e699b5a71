"""Judge a model by its pictures: style, copies of training images, and prompt adherence."""
