from prefect import flow


@flow(log_prints=True)
def ship(order: int, express: bool = False) -> None:
    print(f"shipping order {order}, express: {express}")


if __name__ == "__main__":
    ship.serve(name="production")
