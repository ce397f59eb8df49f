import torch

from spcl_loss import SupervisedPrototypicalContrastiveLoss

torch.manual_seed(0)
class_sizes = torch.tensor([4710.0, 1743, 1205, 1109, 683, 271, 268])  # MELD's: 3% of the data are of the rarest class
labels = torch.multinomial(class_sizes, 4000, replacement=True)
inputs = torch.randn(7, 64)[labels] + 3 * torch.randn(4000, 64)
encoder = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 32))

loss_fn = SupervisedPrototypicalContrastiveLoss(num_classes=7, embedding_dim=32)
optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-3)
for epoch in range(3):
    for batch in torch.randperm(2000).split(32):
        loss = loss_fn(encoder(inputs[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    correct = (loss_fn.predict(encoder(inputs[2000:])) == labels[2000:]).float()
    recall = torch.stack([correct[labels[2000:] == label].mean() for label in range(7)]).mean()
    print(f"epoch {epoch}: accuracy {correct.mean():.2f}, mean recall of the classes {recall:.2f} on unseen data")
