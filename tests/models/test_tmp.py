from tests.models import zoo
def test_all(model):
    model(zoo.tokens())
