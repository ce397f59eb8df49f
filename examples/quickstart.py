import torch
from torch import nn

from spcl_loss import SupervisedPrototypicalContrastiveLoss

torch.manual_seed(0)
class_sizes = torch.tensor([4710.0, 1743, 1205, 1109, 683, 271, 268])  # the rarest: 3%
labels = torch.multinomial(class_sizes, 4000, replacement=True)
inputs = torch.randn(7, 64)[labels] + 3 * torch.randn(4000, 64)
encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))

loss_fn = SupervisedPrototypicalContrastiveLoss(num_classes=7, embedding_dim=32)
optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
for epoch in range(3):
    for batch in torch.randperm(2000).split(32):
        loss = loss_fn(encoder(inputs[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = (loss_fn.predict(encoder(inputs[2000:])) == labels[2000:]).float()
    recalls = torch.stack([right[labels[2000:] == c].mean() for c in range(7)])
    accuracy, recall = right.mean(), recalls.nanmean()
    print(f"epoch {epoch}: accuracy {accuracy:.2f}, mean recall {recall:.2f}")
